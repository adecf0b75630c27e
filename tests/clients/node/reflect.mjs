// What a coordinator tells of its services by reflection, without any .proto file:
// each service and its methods, asked once by v1 and once by v1alpha.
//
//     node reflect.mjs <settings.json>

import { readFileSync } from "node:fs";

import grpc from "@grpc/grpc-js";
import reflection from "grpc-js-reflection-client";

const settings = JSON.parse(readFileSync(process.argv[2], "utf8"));
const credentials = grpc.credentials.createSsl(
  readFileSync(settings.authority),
  readFileSync(settings.tls_key),
  readFileSync(settings.tls_certificate),
);
const options = { "grpc.ssl_target_name_override": settings.server_name };

const told = {};
for (const version of ["v1", "v1alpha"]) {
  const client = new reflection.GrpcReflection(settings.address, credentials, options, version);
  told[version] = {};
  for (const service of await client.listServices()) {
    const methods = await client.listMethods(service);
    told[version][service] = methods.map((method) => method.name).sort();
  }
}
console.log(JSON.stringify(told));
process.exit(0);
