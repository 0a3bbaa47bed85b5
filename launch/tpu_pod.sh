#!/usr/bin/env bash
# A qaq run on a Cloud TPU slice, started from a machine with gcloud.
#
#   launch/tpu_pod.sh [--dry-run] create | status | setup | logs | stop | delete
#   launch/tpu_pod.sh [--dry-run] run STAGE --config=... --workdir=...
#
# Every command is the same one on every host. --dry-run prints what would be
# executed. Settings come from the environment:
#   NAME     of the slice                          qaq
#   ZONE     where it is                           required
#   TYPE     accelerator type                      v5litepod-16
#   RUNTIME  software of the TPU VMs               v2-alpha-tpuv5-lite
#   SPOT=1   takes capacity that may be withdrawn
#   WORKER   host whose log is shown               0
set -euo pipefail
cd "$(dirname "$0")/.."

NAME=${NAME:-qaq}
TYPE=${TYPE:-v5litepod-16}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
WORKER=${WORKER:-0}

dry=
if [ "${1:-}" = --dry-run ]; then
  dry=1
  shift
fi
command=${1:-}
[ $# -eq 0 ] || shift

show() {  # executes its arguments, or prints them ready to be pasted
  if [ -n "$dry" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

queued() { show gcloud compute tpus queued-resources "$@" --zone="$ZONE"; }

hosts() {  # a shell command on hosts: all, or one number
  show gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" \
    --worker="$1" --command="$2"
}

usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' launch/tpu_pod.sh; }

case "$command" in
  create | status | setup | run | logs | stop | delete) ;;
  *) usage >&2; exit 2 ;;
esac
: "${ZONE:?set ZONE, as in ZONE=us-central1-a}"

case "$command" in
  create)
    queued create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" \
      --runtime-version="$RUNTIME" ${SPOT:+--spot}
    ;;
  status) queued describe "$NAME" ;;
  setup)
    # The commit that is checked out here; uv brings the Python it needs.
    archive=${TMPDIR:-/tmp}/qaq_jax.tar.gz
    show git archive --format=tar.gz --prefix=qaq_jax/ -o "$archive" HEAD
    show gcloud compute tpus tpu-vm scp "$archive" "$NAME": --zone="$ZONE" \
      --worker=all
    hosts all 'set -e; tar xzf qaq_jax.tar.gz; cd qaq_jax
      curl -LsSf https://astral.sh/uv/install.sh | sh
      ~/.local/bin/uv venv --clear --python 3.11
      ~/.local/bin/uv pip install -c requirements/base.txt -e ".[tpu,gcs]"'
    ;;
  run)
    [ $# -gt 0 ] || { usage >&2; exit 2; }
    # It goes on when the connection ends; each host keeps its own log.
    hosts all "cd qaq_jax; nohup .venv/bin/qaq$(printf ' %q' "$@") \
> qaq.log 2>&1 < /dev/null & echo \$! > qaq.pid"
    ;;
  logs) hosts "$WORKER" 'tail -n 100 -f qaq_jax/qaq.log' ;;
  stop)
    # shellcheck disable=SC2016  # expanded there, not here
    hosts all 'kill -INT "$(cat qaq_jax/qaq.pid)"'
    ;;
  delete) queued delete "$NAME" --force ;;
esac
