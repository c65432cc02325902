"""``shardwright completion``: scripts that hold all that there is, so that no Python runs while somebody types."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from shardwright.cli.answer import Answer

HELP = "print the lines by which a shell completes this command"


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """By name."""
    (found,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(found.choices)


def _summaries(parser: argparse.ArgumentParser) -> dict[str, str]:
    (found,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return {action.dest: action.help or "" for action in found._choices_actions}


def _options(command: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    for action in command._actions:
        for name in action.option_strings:
            if name.startswith("--"):
                yield name, action


def _words(action: argparse.Action) -> str:
    return " ".join(map(str, action.choices or ()))


def bash(parser: argparse.ArgumentParser) -> str:
    """Files are what is left where nothing else is known: paths, and values of options."""
    cases = []
    for name, command in commands_of(parser).items():
        names = " ".join(option for option, _ in _options(command))
        places = " ".join(_words(action) for action in command._actions if not action.option_strings).strip()
        lines = [
            f"        {option}) words='{_words(action)}' ;;"
            for option, action in _options(command)
            if action.nargs != 0
        ]
        lines.append(f"        *) if [[ $word == -* ]]; then words='{names}'; else words='{places}'; fi ;;")
        cases.append(f"    {name})\n      case $before in\n" + "\n".join(lines) + "\n      esac ;;")
    return f"""_shardwright() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=
  if ((COMP_CWORD == 1)); then words='{" ".join(commands_of(parser))} --help --version'; else case ${{COMP_WORDS[1]}} in
{chr(10).join(cases)}
  esac; fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _shardwright shardwright"""


def zsh(parser: argparse.ArgumentParser) -> str:
    """By zsh's own bashcompinit, which needs compinit: a .zshrc that is new may not have it."""
    return (
        "whence compdef >/dev/null || { autoload -U compinit && compinit -i; }\n"
        f"autoload -U +X bashcompinit && bashcompinit\n{bash(parser)}"
    )


def fish(parser: argparse.ArgumentParser) -> str:
    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    lines = []
    for name, summary in _summaries(parser).items():
        lines.append(f"complete -c shardwright -n __fish_use_subcommand -f -a {name} -d {quoted(summary)}")
    for name, command in commands_of(parser).items():
        # Not __fish_seen_subcommand_from, which takes a path called as a command for one.
        inside = f"complete -c shardwright -n 'contains {name} (commandline -opc)[2]'"
        for option, action in _options(command):
            what = (action.help or "").replace("%%", "%")
            value = (
                "" if action.nargs == 0 else f" -x -a {quoted(_words(action))}" if action.choices else " -r"
            )
            lines.append(f"{inside} -l {option.removeprefix('--')}{value} -d {quoted(what)}")
        for action in command._actions:
            if not action.option_strings and action.choices:
                lines.append(f"{inside} -f -a {quoted(_words(action))}")
    return "\n".join(lines)


SCRIPTS = {"bash": bash, "zsh": zsh, "fish": fish}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "shell",
        choices=sorted(SCRIPTS),
        help="bash or zsh: put `source <(shardwright completion bash)` into its file of settings; fish: "
        "`shardwright completion fish > ~/.config/fish/completions/shardwright.fish`",
    )


def run(options: argparse.Namespace) -> Answer:
    return Answer(text=SCRIPTS[options.shell](options.whole))
