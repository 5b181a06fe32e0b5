// Creates flow runs and reads them back, with nothing of Penstock but protos/.
//
//   node client.js PROTOS ADDRESS FLOW_ID FLOW_GROUP_ID
//
// PENSTOCK_TOKEN is sent with every call when it is set. Prints one JSON document.
"use strict";

const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const [protos, address, flowId, flowGroupId] = process.argv.slice(2);
const ABSENT = "01890000-0000-7000-8000-000000000000";

const { flowrun } = grpc.loadPackageDefinition(
  protoLoader.loadSync("flowrun/v1/flow_run_service.proto", {
    includeDirs: [protos],
    keepCase: true,
    // 64-bit integers as text: a JavaScript number would round the large ones.
    longs: String,
    enums: String,
  }),
);

// Where a refusal's reason travels: google.rpc.Status in the trailers. Only the fields read here.
const rpc = protoLoader.fromJSON(
  {
    nested: {
      Status: { fields: { details: { rule: "repeated", type: "Any", id: 3 } } },
      Any: { fields: { type_url: { type: "string", id: 1 }, value: { type: "bytes", id: 2 } } },
      ErrorInfo: {
        fields: {
          reason: { type: "string", id: 1 },
          domain: { type: "string", id: 2 },
          metadata: { keyType: "string", type: "string", id: 3 },
        },
      },
    },
  },
  { keepCase: true },
);

function refusalOf(error) {
  const [status] = error.metadata?.get("grpc-status-details-bin") ?? [];
  const details = status ? rpc.Status.deserialize(status).details : [];
  const info = details.find((detail) => detail.type_url.endsWith("/google.rpc.ErrorInfo"));
  return {
    code: grpc.status[error.code],
    message: error.details,
    ...(info && rpc.ErrorInfo.deserialize(info.value)),
  };
}

const client = new flowrun.v1.FlowRunService(address, grpc.credentials.createInsecure());

function call(method, request, token = process.env.PENSTOCK_TOKEN) {
  const metadata = new grpc.Metadata();
  if (token) metadata.set("authorization", `Bearer ${token}`);
  const options = { deadline: Date.now() + 30_000 };
  return new Promise((resolve, reject) => {
    client[method](request, metadata, options, (error, response) => (error ? reject(error) : resolve(response)));
  });
}

async function refusal(method, request, token) {
  try {
    await call(method, request, token);
  } catch (error) {
    return refusalOf(error);
  }
  throw new Error(`${method} was not refused`);
}

async function createAndRead(request) {
  const { flow_run: created } = await call("CreateFlowRun", request);
  const { flow_run: read } = await call("GetFlowRun", { flow_run_id: created.flow_run_id });
  return { created, read };
}

async function main() {
  const parameters_json = '{"number": 12345678901234567890, "share": 2.0}';
  const keyed = { flow_group_id: flowGroupId, idempotency_key: "from-node" };
  const output = {
    by_flow: await createAndRead({ flow_id: flowId, name: "made-in-node", parameters_json }),
    by_flow_group: await createAndRead(keyed),
    repeated: await call("CreateFlowRun", keyed),
    refused: await refusal("CreateFlowRun", { flow_id: ABSENT }),
    violated: await refusal("CreateFlowRun", {}),
    uncredentialed: await refusal("GetFlowRun", { flow_run_id: ABSENT }, "another"),
  };
  console.log(JSON.stringify(output));
}

main()
  .catch((error) => {
    console.error(error);
    process.exitCode = 1;
  })
  .finally(() => client.close());
