// The first page: continue a text and watch it appear. Model output only ever becomes text nodes, never HTML.

const $ = (id) => document.getElementById(id);
let running = null;

async function showStatus() {
  try {
    const health = await (await fetch('health')).json();
    if (health.status === 'loading model') {
      $('status').textContent = `loading the model… ${Math.round((health.error?.progress ?? 0) * 100)} %`;
      setTimeout(showStatus, 500);
      return;
    }
    const models = await (await fetch('v1/models')).json();
    $('status').textContent = health.error?.message ?? models.data[0].id.split(/[\\/]/).pop();
  } catch {
    $('status').textContent = 'the server does not answer';
    setTimeout(showStatus, 2000);
  }
}

// Server-sent events of a POST, as parsed JSON objects.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split('\n\n');
    rest = blocks.pop();
    for (const block of blocks)
      for (const line of block.split('\n'))
        if (line.startsWith('data: ')) yield JSON.parse(line.slice(6));
  }
}

async function complete() {
  running = new AbortController();
  $('send').disabled = true;
  $('stop').disabled = false;
  $('output').classList.remove('error');
  $('output').textContent = $('prompt').value;
  $('timings').textContent = '';
  try {
    const response = await fetch('completion', {
      method: 'POST',
      signal: running.signal,
      body: JSON.stringify({
        prompt: $('prompt').value,
        n_predict: Number($('n_predict').value),
        temperature: Number($('temperature').value),
        stream: true,
      }),
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      $('output').append(chunk.content);
      if (chunk.timings) showTimings(chunk.timings);
    }
  } catch (error) {
    if (error.name !== 'AbortError') {
      $('output').classList.add('error');
      $('output').textContent = error.message;
    }
  } finally {
    running = null;
    $('send').disabled = false;
    $('stop').disabled = true;
  }
}

function showTimings(t) {
  $('timings').textContent = `${t.predicted_n} tokens, ${t.predicted_per_second.toFixed(1)} per second; ` +
    `prompt ${t.prompt_n} read, ${t.cache_n} reused, ${t.prompt_ms.toFixed(0)} ms`;
}

$('form').addEventListener('submit', (event) => { event.preventDefault(); if (!running) complete(); });
$('stop').addEventListener('click', () => running?.abort());
$('prompt').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) { event.preventDefault(); $('form').requestSubmit(); }
});
showStatus();
