"""The HTTP surface: OpenAI's chat completions, and a page for each tree; see docs/http.md."""
