// Has the TypeScript client read answers that are cut off, foreign or broken, and prints what came of it.
import http from "node:http";
const { ServerError } = await import(process.argv[2]);
const { Transport } = await import(new URL("transport.js", `file://${process.argv[2]}`));

const asked = {};
const server = http.createServer((request, response) => {
  const name = request.url.slice(1);
  asked[name] = (asked[name] ?? 0) + 1;
  const type = {
    page: "text/html", stream: "text/html", file: "text/plain", refusal: "application/problem+json",
  }[name] ?? "application/json"; // prettier-ignore
  const headers = { "content-type": type, ...(name === "file" ? { "x-request-id": "told" } : {}) };
  if (["half", "part", "unsafe"].includes(name) && asked[name] === 1) {
    response.writeHead(200, { ...headers, "content-length": 100 });
    response.write('{"id"', () => response.destroy());
    return;
  }
  response.writeHead(name === "refusal" ? 404 : 200, headers);
  response.end({ page: "<p>hello", stream: "<p>hello", file: "text", broken: '{"id"', refusal: '{"code"' }[name] ?? "[7]");
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const transport = new Transport(`http://127.0.0.1:${server.address().port}`, { patience: 5000 });

async function told(doing) {
  try {
    const answer = await doing();
    return answer instanceof Uint8Array ? new TextDecoder().decode(answer) : answer;
  } catch (error) {
    return error instanceof ServerError ? error.code : `${error}`;
  }
}

const again = true;
const got = {
  half: await told(() => transport.request("GET", "/half", { again })),
  part: await told(() => transport.request("GET", "/part", { again, binary: true })),
  unsafe: await told(() => transport.request("POST", "/unsafe")),
  page: await told(() => transport.request("GET", "/page", { again })),
  stream: await told(() => transport.stream("/stream").next()),
  file: await told(() => transport.request("GET", "/file", { again, binary: true })),
  broken: await told(() => transport.request("GET", "/broken", { again })),
  refusal: await told(() => transport.request("GET", "/refusal", { again })),
};
console.log(JSON.stringify(Object.fromEntries(Object.entries(got).map(([name, each]) => [name, [each, asked[name]]]))));
process.exit(0);
