"""Models from the hub, against a small hub of our own that speaks HTTP.

A child process resolves ids with HF_ENDPOINT at that server, as a user's would.
"""

import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest
import tiny_models

from qaq_jax.models.hf import source, tensors

COMMIT = '1f' * 20
CLIENT = """
import json, sys
from qaq_jax.models.hf import source
for name, revision in json.loads(sys.argv[1]):
  try:
    found = source.resolve(name, revision)
    print(json.dumps({
        'commit': found.commit, 'revision': found.revision,
        'files': sorted(p.name for p in found.directory.iterdir()),
        'hashes': [f['sha256'] for f in source.fingerprint(found)['files']],
    }))
  except Exception as e:
    print(json.dumps({'error': type(e).__name__, 'message': str(e)}))
"""


class Hub(http.server.BaseHTTPRequestHandler):
  """The few answers of the hub that a download asks for."""

  repositories = {}
  asked = []

  def log_message(self, *args):
    pass

  def fail(self, status, code):
    self.send_response(status)
    self.send_header('X-Error-Code', code)
    self.send_header('Content-Length', '0')
    self.end_headers()

  def answer(self, body, **headers):
    self.send_response(200)
    self.send_header('Content-Length', str(len(body)))
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), value)
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(body)

  def do_GET(self):
    path = self.path.split('?')[0]
    self.asked.append((self.command, path, self.headers.get('Authorization')))
    if path.startswith('/api/models/'):
      repo, _, rest = path.removeprefix('/api/models/').partition('/revision/')
      if not rest:
        repo, _, rest = path.removeprefix('/api/models/').partition('/tree/')
      if repo == 'maker/gated':
        return self.fail(403, 'GatedRepo')
      files = self.repositories.get(repo)
      if files is None:
        return self.fail(404, 'RepoNotFound')
      if rest not in ('', 'main', 'v1', COMMIT):
        return self.fail(404, 'RevisionNotFound')
      if '/tree/' in path:
        body = [
          {'type': 'file', 'path': n, 'size': len(b), 'oid': _oid(b)}
          for n, b in files.items()
        ]
      else:
        body = {
          'id': repo,
          'sha': COMMIT,
          'private': False,
          'tags': [],
          'downloads': 0,
          'likes': 0,
          'siblings': [{'rfilename': n} for n in files],
        }
      return self.answer(
        json.dumps(body).encode(), Content_Type='application/json'
      )
    repo, _, rest = path[1:].partition('/resolve/')
    name = rest.partition('/')[2]
    body = self.repositories.get(repo, {}).get(name)
    if body is None:
      return self.fail(404, 'EntryNotFound')
    return self.answer(
      body,
      ETag=f'"{_oid(body)}"',
      X_Repo_Commit=COMMIT,
      Accept_Ranges='bytes',
    )

  do_HEAD = do_GET


def _oid(body):
  return hashlib.sha256(body).hexdigest()


@pytest.fixture(scope='module')
def hub(tmp_path_factory):
  directory = tiny_models.write('gpt2', tmp_path_factory.mktemp('gpt2'))
  good = {p.name: p.read_bytes() for p in directory.iterdir()}
  config = {'config.json': good['config.json']}
  Hub.repositories = {
    'maker/good': good
    | {
      'tokenizer.json': b'{}',
      'pytorch_model.bin': b'pickle',
      'modeling_own.py': b'raise SystemExit',
      'onnx/model.safetensors': b'x',
    },
    'maker/pickles': config | {'pytorch_model.bin': b'pickle'},
    'maker/llamacpp': config | {'model-Q4.gguf': b'x'},
  }
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  yield f'http://127.0.0.1:{server.server_port}', tmp_path_factory.mktemp('hf')
  server.shutdown()


def resolve(hub, wanted, **environment):
  """Resolves (name, revision) pairs in a process of its own."""
  endpoint, home = hub
  root = pathlib.Path(__file__).parent.parent
  kept = {k: v for k, v in os.environ.items() if not k.startswith('HF_')}
  done = subprocess.run(
    [sys.executable, '-c', CLIENT, json.dumps(wanted)],
    env=kept
    | {
      'HF_ENDPOINT': endpoint,
      'HF_HOME': str(home),
      'HF_HUB_OFFLINE': '0',
      'HF_HUB_DISABLE_XET': '1',
      'NO_PROXY': '*',
      'PYTHONPATH': str(root),
      **environment,
    },
    capture_output=True,
    text=True,
    timeout=240,
    check=True,
  )
  return [json.loads(line) for line in done.stdout.splitlines()]


def test_hub_ids(hub):
  Hub.asked.clear()
  found = resolve(
    hub,
    [
      ('maker/good', 'v1'),
      ('maker/gated', None),
      ('maker/none', None),
      ('maker/good', 'v9'),
      ('maker/pickles', None),
      ('maker/llamacpp', None),
    ],
    HF_TOKEN='hf_secret',
  )
  good, gated, none, revision, pickles, gguf = found
  assert good['commit'] == COMMIT and good['revision'] == 'v1'
  # No code, no pickles, no other format's copy.
  assert good['files'] == ['config.json', 'model.safetensors', 'tokenizer.json']
  assert good['hashes'][1] == _oid(
    Hub.repositories['maker/good']['model.safetensors']
  )
  assert ('HEAD' in {a[0] for a in Hub.asked}) and all(
    'pytorch_model' not in path and '.py' not in path
    for _, path, _ in Hub.asked
  )
  assert 'Bearer hf_secret' in {a[2] for a in Hub.asked}
  assert gated['error'] == 'PermissionError'
  assert f'{hub[0]}/maker/gated' in gated['message']
  assert 'HF_TOKEN' in gated['message']
  assert none['error'] == 'FileNotFoundError'
  assert 'no such repository' in none['message']
  assert revision['error'] == 'FileNotFoundError'
  assert "revision 'v9': no such revision" in revision['message']
  assert pickles['error'] == 'CheckpointError'
  assert 'save_pretrained' in pickles['message']
  assert gguf['error'] == 'CheckpointError' and 'GGUF' in gguf['message']

  # The same again without a network: what is cached is found, the rest named.
  Hub.asked.clear()
  again, missing = resolve(
    hub, [('maker/good', 'v1'), ('maker/other', None)], HF_HUB_OFFLINE='1'
  )
  assert again == good
  assert missing['error'] == 'FileNotFoundError'
  assert 'HF_HUB_OFFLINE is set' in missing['message']
  assert not Hub.asked


def test_no_network(hub):
  (found,) = resolve(
    (f'http://127.0.0.1:{_closed_port()}', hub[1]), [('maker/x', None)]
  )
  assert found['error'] == 'ConnectionError'
  assert 'could not be reached' in found['message']


def _closed_port():
  server = http.server.HTTPServer(('127.0.0.1', 0), Hub)
  port = server.server_port
  server.server_close()
  return port


def test_local_paths(tmp_path):
  directory = tiny_models.write('llama', tmp_path / 'm')
  found = source.resolve(directory)
  assert found.directory == directory.resolve() and found.commit is None
  with pytest.raises(ValueError, match="revision 'main' has no meaning"):
    source.resolve(directory, 'main')
  with pytest.raises(FileNotFoundError, match='no such folder, and not a hub'):
    source.resolve(tmp_path / 'none' / 'such')
  with pytest.raises(tensors.CheckpointError, match='is a file'):
    source.resolve(directory / 'model.safetensors')
  (directory / 'config.json').write_text('{"a": ')
  with pytest.raises(tensors.CheckpointError, match='not valid JSON'):
    source.read_json(found)
  (directory / 'config.json').unlink()
  with pytest.raises(tensors.CheckpointError, match='no config.json'):
    source.resolve(directory)
