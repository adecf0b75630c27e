// A hospital of one round, written with nothing of MATL but its .proto files:
// hello, await the round, sign a manifest, send the chunks, check the receipt.
//
//     node hospital.mjs <settings.json>
//
// Prints what it was told, as JSON. The values of its update come from a file.

import { createHash, createPrivateKey, createPublicKey, sign, verify } from "node:crypto";
import { readFileSync } from "node:fs";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const CHUNK_BYTES = 1 << 20;
const CALL_SECONDS = 60;
const settings = JSON.parse(readFileSync(process.argv[2], "utf8"));
const definition = protoLoader.loadSync("matl/v1/federation.proto", {
  includeDirs: [settings.protos],
  keepCase: true,
  longs: String,
  defaults: true,
});
const sha256 = (...parts) => parts.reduce((hash, part) => hash.update(part), createHash("sha256"));
const hex = (data) => sha256(data).digest("hex");

// DSSE: what is signed is the type and the exact bytes.
function preAuthenticationEncoding(type, payload) {
  const head = `DSSEv1 ${Buffer.byteLength(type)} ${type} ${payload.length} `;
  return Buffer.concat([Buffer.from(head), payload]);
}

function opened(envelope, key, type, message) {
  const signed = preAuthenticationEncoding(type, envelope.payload);
  if (envelope.payload_type !== type || !verify("sha256", signed, key, envelope.signature)) {
    throw new Error(`not signed by the coordinator: ${type}`);
  }
  return definition[`matl.v1.${message}`].deserialize(envelope.payload);
}

// RFC 6962, 2.1.
const leafHash = (chunk) => sha256(Buffer.from([0]), chunk).digest();
function rootOf(hashes) {
  if (hashes.length === 1) return hashes[0];
  let split = 1;
  while (split * 2 < hashes.length) split *= 2;
  const halves = [rootOf(hashes.slice(0, split)), rootOf(hashes.slice(split))];
  return sha256(Buffer.from([1]), ...halves).digest();
}

function unary(client, method, request) {
  return new Promise((resolve, reject) => {
    const deadline = Date.now() + CALL_SECONDS * 1000;
    client[method](request, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

function push(client, digest, chunks, first) {
  return new Promise((resolve, reject) => {
    const deadline = Date.now() + CALL_SECONDS * 1000;
    const call = client.PushChunks({ deadline }, (error, answer) =>
      error ? reject(error) : resolve(answer),
    );
    call.write({ update_digest: digest });
    for (let index = first; index < chunks.length; index += 1) {
      call.write({ chunk: { index, data: chunks[index] } });
    }
    call.end();
  });
}

async function offered(client) {
  for (;;) {
    const answer = await unary(client, "AwaitRound", { have_round: 0, wait_seconds: 20 });
    if (answer.round_start) return answer.round_start;
  }
}

const coordinatorKey = createPublicKey(readFileSync(settings.coordinator_signing_key));
const signingKey = createPrivateKey(readFileSync(settings.signing_key));
const spki = createPublicKey(signingKey).export({ type: "spki", format: "der" });
const service = grpc.loadPackageDefinition(definition).matl.v1.FederationService;
const client = new service(
  settings.address,
  grpc.credentials.createSsl(
    readFileSync(settings.authority),
    readFileSync(settings.tls_key),
    readFileSync(settings.tls_certificate),
  ),
  { "grpc.ssl_target_name_override": settings.server_name },
);

const hello = await unary(client, "Hello", { version: "node", device: "cpu" });
const planType = "application/vnd.matl.study-plan.v1";
const plan = opened(hello.study_plan, coordinatorKey, planType, "StudyPlan");
const startType = "application/vnd.matl.round-start.v1";
const start = opened(await offered(client), coordinatorKey, startType, "RoundStart");

const elements = plan.schema.tensors
  .filter((tensor) => tensor.trainable)
  .reduce((sum, tensor) => sum + tensor.shape.reduce((size, each) => size * Number(each), 1), 0);
const update = readFileSync(settings.update);
if (update.length !== 4 * elements) throw new Error(`the plan wants ${elements} values`);
const chunks = [];
for (let at = 0; at < update.length; at += CHUNK_BYTES) chunks.push(update.subarray(at, at + CHUNK_BYTES));
const hashes = chunks.map(leafHash);

const payload = definition["matl.v1.UpdateManifest"].serialize({
  federation_id: start.federation_id,
  study_id: start.study_id,
  round_id: start.round_id,
  nonce: start.nonce,
  plan_digest: hex(hello.study_plan.payload),
  base_model: start.base_model,
  schema_digest: plan.schema.digest,
  byte_count: update.length,
  chunk_bytes: CHUNK_BYTES,
  chunk_root: rootOf(hashes),
  privacy: {
    noise_multiplier: plan.privacy.noise_multiplier,
    max_grad_norm: plan.privacy.max_grad_norm,
    sample_rate: plan.privacy.sample_rate,
    steps: plan.training.steps_per_round,
    noise: plan.privacy.noise,
  },
  expires_at_unix_ms: String(Number(start.deadline_unix_ms) + 3_600_000),
});
const updateType = "application/vnd.matl.update.v1";
const signature = sign("sha256", preAuthenticationEncoding(updateType, payload), signingKey);
const manifest = { payload_type: updateType, payload, key_id: hex(spki), signature };

const declared = await unary(client, "OpenUpdate", { manifest, chunk_hashes: Buffer.concat(hashes) });
const sent = await push(client, declared.update_digest, chunks, declared.durable_chunks);
const receipt = opened(sent.receipt, coordinatorKey, "application/vnd.matl.receipt.v1", "Receipt");
if (receipt.update_digest !== hex(payload)) throw new Error("the receipt is of another update");
const { round_id, node_id, update_digest, log_index, log_leaf_hash } = receipt;
console.log(
  JSON.stringify({
    study: plan.study_id,
    chunks: chunks.length,
    round: Number(round_id),
    node: node_id,
    update: update_digest,
    log_index: Number(log_index),
    log_leaf_hash,
  }),
);
client.close();
