// A browser starts no worker for a page that lies on the disk. There, the script of one runs in a hidden frame, so that the
// search works without a server. Named as the theme asks for it, which would otherwise fetch one from elsewhere.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      const inside = frame.contentWindow
      const waiting = []
      let ready = false
      const hand = data => inside.dispatchEvent(new MessageEvent("message", { data }))
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      inside.importScripts = (...urls) => Promise.all(urls.map(load))
      this.postMessage = data => (ready ? hand(data) : waiting.push(data))
      this.terminate = () => frame.remove()
      function load(source) {
        return new Promise((done, failed) => {
          const script = inside.document.createElement("script")
          script.src = new URL(source, location)
          script.onload = done
          script.onerror = failed
          inside.document.body.append(script)
        })
      }
      load(url).then(() => {
        ready = true
        waiting.forEach(hand)
      })
    }
  }
}
