"""The page at `/`."""

import html
import json
from string import Template

from specdec import __version__
from specdec.server.messages import EngineInfo

_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>$name - specdec</title>
<style>
  body { font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
  pre { background: #8881; padding: .8rem; overflow-x: auto; }
  td { padding-right: 2rem; } td + td { font-variant-numeric: tabular-nums; }
</style>
<h1>$name</h1>
<p>Served by specdec $version: $dtype, up to $length tokens of prompt and answer together. The API is OpenAI's, at
<code>$url/v1</code>.</p>
<h2>Call it</h2>
<pre>curl $url/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '$body'</pre>
<pre>from openai import OpenAI
client = OpenAI(base_url="$url/v1", api_key="none")
answer = client.chat.completions.create(model="$name", messages=[{"role": "user", "content": "Hello!"}])
print(answer.choices[0].message.content)</pre>
<p>Where the server asks for a key, it is the <code>api_key</code>, or <code>Authorization: Bearer KEY</code>.</p>
<h2>Speculation</h2>
<table>
  <tr><td></td><td>last seconds</td><td>since the start</td></tr>
  <tr><td>tokens per verified tree</td><td id="length"></td><td id="all-length"></td></tr>
  <tr><td>accepted drafts</td><td id="rate"></td><td id="all-rate"></td></tr>
  <tr><td>tokens</td><td id="speed"></td><td id="tokens"></td></tr>
  <tr><td>requests that run, that wait</td><td id="requests"></td></tr>
</table>
<p>More: <a href="v1/models">models</a>, <a href="metrics">metrics</a>, <a href="health">health</a>.</p>
<script>
  const seconds = 2;
  let before = {};
  const show = (id, text) => document.getElementById(id).textContent = text;
  const length = (drafts, accepted) => drafts > 0 ? (1 + accepted / drafts).toFixed(2) : "-";
  const rate = (drafted, accepted) => drafted > 0 ? (100 * accepted / drafted).toFixed(0) + " %" : "-";
  async function look() {
    const text = await (await fetch("metrics")).text(), now = {};
    for (const [, name, value] of text.matchAll(/^specdec:(\\w+){model_name="[^}]*"} (\\S+)$$/gm)) now[name] = Number(value);
    const of = (name) => now[name + "_total"] ?? 0, since = (name) => of(name) - (before[name + "_total"] ?? of(name));
    const drafts = "spec_decode_num_drafts", drafted = "spec_decode_num_draft_tokens";
    const accepted = "spec_decode_num_accepted_tokens", tokens = "generation_tokens";
    show("length", length(since(drafts), since(accepted)));
    show("all-length", length(of(drafts), of(accepted)));
    show("rate", rate(since(drafted), since(accepted)));
    show("all-rate", rate(of(drafted), of(accepted)));
    show("speed", (since(tokens) / seconds).toFixed(1) + " per second");
    show("tokens", of(tokens));
    show("requests", (now.num_requests_running ?? 0) + ", " + (now.num_requests_waiting ?? 0));
    before = now;
  }
  look();
  setInterval(look, seconds * 1000);
</script>
</html>
""")


def page(model_name: str, info: EngineInfo, url: str) -> str:
    """HTML that says what is served at `url`, how to call it, and how speculation goes."""
    body = json.dumps({"model": model_name, "messages": [{"role": "user", "content": "Hello!"}]})
    said = {"name": model_name, "version": __version__, "dtype": info.dtype, "url": url, "body": body}
    return _PAGE.substitute({key: html.escape(value) for key, value in said.items()}, length=f"{info.max_model_len:,}")
