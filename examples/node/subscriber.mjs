// Reads the stream of streampose and prints a line of JSON for each frame.
//
//     npm install
//     node subscriber.mjs [tcp://127.0.0.1:5555] [--key tablet.key] [--count N]
//
// docs/protocol.md says what the messages are.

import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";

import { decode } from "@msgpack/msgpack";
import { Subscriber } from "zeromq";

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: { key: { type: "string" }, count: { type: "string", default: "Infinity" } },
});

const socket = new Subscriber({ linger: 0, maxMessageSize: 1 << 20 });
if (options.key) {
  const text = readFileSync(options.key, "utf8");
  const read = (name) => new RegExp(`^${name} = "(.{40})"$`, "m").exec(text)?.[1] ?? fail(`${options.key} is no key file`);
  socket.curveServerKey = read("publisher");
  socket.curvePublicKey = read("public");
  socket.curveSecretKey = read("secret");
}
const failures = {
  "connect:retry": "nobody answers there",
  "handshake:error:auth": "the publisher does not let this key in",
  "handshake:error:protocol": "the publisher wants a key, or none",
  "handshake:error:other": "the key is wrong, or is for another publisher",
};
const told = new Set();
for (const [kind, what] of Object.entries(failures)) {
  socket.events.on(kind, () => {
    if (!told.has(kind)) console.error(`no connection: ${what}; trying again`);
    told.add(kind);
  });
}
socket.connect(positionals[0] ?? "tcp://127.0.0.1:5555");
socket.subscribe("hello.", "status.", "pose.", "heartbeat");

const joints = new Map(); // of each source, from its hello
const last = new Map(); // run_id and seq of each source
let count = 0;
let skipped = 0;

for await (const parts of socket) {
  try {
    take(parts);
  } catch (error) {
    if (++skipped === 1) console.error(`skipped a message: ${error.message}; more are only counted`);
  }
  if (count >= Number(options.count)) break;
}
if (skipped) console.error(`skipped ${skipped} in all`);
socket.close();

function fail(what) {
  console.error(`error: ${what}`);
  process.exit(1);
}

function take(parts) {
  if (parts.length !== 3) throw new Error(`a message of ${parts.length} parts`);
  const [topicBytes, headerBytes, blob] = parts;
  const topic = topicBytes.toString();
  // Times are nanoseconds, too large for a double after 104 days of uptime: useBigInt64 keeps them whole.
  const header = decode(headerBytes, { useBigInt64: true });
  if (Number(header.schema) !== 1) throw new Error(`schema ${header.schema}; this program reads schema 1`);
  if (topic.startsWith("hello.")) {
    joints.set(header.source, header.joints);
  } else if (topic.startsWith("status.")) {
    console.error(`${header.source}: ${header.state}`);
  } else if (topic.startsWith("pose.")) {
    const before = last.get(header.source);
    const seq = Number(header.seq);
    const sameRun = before?.run === header.run_id;
    if (sameRun && seq <= before.seq) return; // a repetition, sent to greet somebody else
    const line = JSON.stringify({
      source: header.source,
      seq,
      missed: sameRun ? seq - before.seq - 1 : 0,
      latency_ms: Number(BigInt(header.published_ns) - BigInt(header.captured_ns)) / 1e6, // small ones come as numbers
      people: readPeople(header, blob, joints.get(header.source)),
    });
    console.log(line);
    last.set(header.source, { run: header.run_id, seq });
    count += 1;
  }
}

/** Boxes (P, 4), then keypoints (P, J, 3): little-endian float32. */
function readPeople(header, blob, names) {
  const people = header.people.length;
  if (people === 0) return [];
  const at = (index) => blob.readFloatLE(4 * index);
  const count = (blob.length / 4 - 4 * people) / (3 * people);
  if (!Number.isInteger(count) || count < 1) throw new Error("a blob of the wrong length");
  return header.people.map(({ track_id, score }, person) => ({
    track_id: Number(track_id),
    score,
    box: [0, 1, 2, 3].map((column) => at(4 * person + column)),
    joints: Object.fromEntries(
      Array.from({ length: count }, (_, joint) => {
        const first = 4 * people + 3 * (count * person + joint);
        return [names?.[joint] ?? joint, [at(first), at(first + 1), at(first + 2)]];
      }),
    ),
  }));
}
