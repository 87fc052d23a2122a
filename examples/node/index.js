// The smallest client: one prompt, one answer. Node 18 or later, no packages.
//   node index.js ["prompt"]          environment: API_URL (http://127.0.0.1:8080)

const apiUrl = (process.env.API_URL ?? 'http://127.0.0.1:8080').replace(/\/+$/, '');
const prompt = process.argv[2] ?? 'Building a website can be done in 10 simple steps:';

async function main() {
  const response = await fetch(`${apiUrl}/completion`, {
    method: 'POST',
    body: JSON.stringify({ prompt, n_predict: Number(process.env.N_PREDICT ?? 512) }),
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error.message);
  console.log(answer.content);
}

main().catch((error) => {
  console.error(`error: ${error.cause?.message ?? error.message}`);
  process.exitCode = 1;
});
