"""Clients of the API in Python and JavaScript, as /docs shows them; tests run them as they stand."""

PYTHON = '''\
"""Finds things in pictures: python client.py "a red mug" kitchen.jpg hall.jpg"""

import json
import os
import sys
from pathlib import Path

import httpx

token = os.environ.get("OWL_SWIN_TOKEN")
server = httpx.Client(
    base_url=os.environ.get("OWL_SWIN_URL", "http://127.0.0.1:8000"),
    headers={"Authorization": f"Bearer {token}"} if token else {},
    timeout=90,
)


def check(answer):
    """Errors are problem documents: a code for programs, a sentence for people, and what the request is called."""
    if answer.is_error:
        problem = json.loads(answer.read())
        raise RuntimeError(f"{problem['code']}: {problem['detail']} (request {problem['request_id']})")
    return answer


def detect(picture, queries, threshold=0.2):
    """Everything in one picture that answers a query, best first; a box is in pixels of the upright picture."""
    form = {"query": queries, "threshold": threshold}
    answer = server.post("/v1/detect", files={"images": (picture.name, picture.read_bytes())}, data=form)
    return check(answer).json()["results"][0]["detections"]


def detect_each(pictures, queries):
    """One record a picture, as soon as it is done; "error" says what is wrong with one of them."""
    files = [("images", (picture.name, picture.read_bytes())) for picture in pictures]
    lines = {"Accept": "application/x-ndjson"}
    with server.stream("POST", "/v1/detect", files=files, data={"query": queries}, headers=lines) as answer:
        for line in check(answer).iter_lines():
            yield json.loads(line)


def annotate(picture, queries):
    """The picture with the boxes drawn in, as PNG."""
    files, png = {"images": (picture.name, picture.read_bytes())}, {"Accept": "image/png"}
    return check(server.post("/v1/detect", files=files, data={"query": queries}, headers=png)).content


if __name__ == "__main__":
    query, *paths = sys.argv[1:]
    pictures = [Path(path) for path in paths]
    print(json.dumps({"first": detect(pictures[0], [query])}))
    for record in detect_each(pictures, [query]):
        print(json.dumps(record))
    Path(pictures[0].stem + "_found.png").write_bytes(annotate(pictures[0], [query]))
'''

JAVASCRIPT = """\
// client.mjs, for browsers and for Node from version 20. A page of another origin needs --allow-origin.
// A picture is a File or a Blob: what <input type="file"> gives, or `await openAsBlob(path)` of node:fs.

function request(pictures, queries, { threshold = 0.2, token, accept = "application/json" } = {}) {
  const body = new FormData();
  for (const picture of pictures) body.append("images", picture, picture.name ?? "picture");
  for (const query of queries) body.append("query", query);
  body.append("threshold", threshold);
  const headers = { Accept: accept, ...(token && { Authorization: `Bearer ${token}` }) };
  return { method: "POST", body, headers };
}

async function check(answer) {
  if (answer.ok) return answer;
  const problem = await answer.json();
  throw new Error(`${problem.code}: ${problem.detail} (request ${problem.request_id})`);
}

// Everything in one picture that answers a query, best first; a box is in pixels of the upright picture.
export async function detect(server, picture, queries, options) {
  const answer = await check(await fetch(`${server}/v1/detect`, request([picture], queries, options)));
  return (await answer.json()).results[0].detections;
}

// One record a picture, as soon as it is done; `index` says which it is, `error` what is wrong with it.
export async function* detectEach(server, pictures, queries, options) {
  const asked = request(pictures, queries, { ...options, accept: "application/x-ndjson" });
  const answer = await check(await fetch(`${server}/v1/detect`, asked));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const lines = (rest + part.value).split("\\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

// The picture with the boxes drawn in, a Blob of PNG.
export async function annotate(server, picture, queries, options) {
  const asked = request([picture], queries, { ...options, accept: "image/png" });
  return (await check(await fetch(`${server}/v1/detect`, asked))).blob();
}
"""
