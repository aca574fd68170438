// Streams an answer over gRPC: npx tsx generate.ts [host:port]. docs/clients.md says how to generate gen/.
import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { InferenceService } from "./gen/pdserve/v1/inference_service_pb.js";

const address = process.argv[2] ?? "127.0.0.1:9000";
const client = createClient(InferenceService, createGrpcTransport({ baseUrl: `http://${address}` }));
const stream = client.generate({
  prompt: { case: "text", value: "Once upon a time" },
  sampling: { maxTokens: 40n },
});
for await (const piece of stream) {
  process.stdout.write(piece.textDelta);
}
console.log();
