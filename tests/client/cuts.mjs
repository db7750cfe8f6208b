// Has the TypeScript client speak to a server that cuts and is busy, and prints what came of it.
import http from "node:http";
const { ServerError, OutriderError } = await import(process.argv[2]);
const { Transport } = await import(new URL("transport.js", `file://${process.argv[2]}`));

const asked = { quiet: 0, ending: 0, busy: 0, given: 0 };
const stop = new AbortController();
const server = http.createServer((request, response) => {
  const name = request.url.slice(1);
  asked[name] += 1;
  if (name === "busy") {
    response.writeHead(503, { "content-type": "application/problem+json", "retry-after": "30" });
    response.end('{"code": "store_locked", "detail": "told"}');
    return;
  }
  const made = name === "given" ? { "created-at": `2030-01-0${asked.given}T00:00:00+00:00` } : {};
  response.writeHead(200, { "content-type": "text/event-stream", ...made });
  if (name === "given") {
    response.end("event: told\nid: 7\ndata: {}\n\n");
    return;
  }
  if (name === "ending") {
    response.end('event: end\ndata: {"reason": "server_stopping"}\n\n');
    if (asked.ending === 3) setTimeout(() => stop.abort(), 50); // the third pause takes 100 ms at least
  } else if (asked.quiet === 1) {
    response.write(":\n\n");
    setTimeout(() => response.destroy(), 250); // longer than the patience
  } else {
    response.end('event: told\nid: 7\ndata: {}\n\nevent: end\ndata: {"reason": "task_ended"}\n\n');
  }
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const url = `http://127.0.0.1:${server.address().port}`;

const events = [];
for await (const event of new Transport(url, { patience: 200 }).stream("/quiet")) events.push(event.id);
const given = []; // its id was given again while it was cut
try {
  for await (const event of new Transport(url).stream("/given")) given.push(event.id);
} catch (error) {
  given.push(error instanceof OutriderError && error.code);
}
let aborted;
try {
  await new Transport(url).stream("/ending", { signal: stop.signal }).next();
} catch (error) {
  aborted = error.name;
}
let ended; // where nothing but ends comes, patience is over some time
try {
  await new Transport(url, { patience: 100 }).stream("/ending").next();
} catch (error) {
  ended = error instanceof ServerError && error.code;
}
const again = asked.ending > 4;
const began = Date.now();
let busy;
try {
  await new Transport(url, { patience: 5000 }).request("GET", "/busy", { again: true });
} catch (error) {
  busy = error instanceof OutriderError && error.code;
}
const took = Date.now() - began;
console.log(JSON.stringify({ events, quiet: asked.quiet, given, aborted, ended, again, busy, tries: asked.busy, waited: took > 4000 }));
process.exit(0);
