"""MiniMax M3, text and VL."""
