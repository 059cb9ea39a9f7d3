#!/usr/bin/env bash
# A SLURM cluster of one node on the loop-back address, with two GPUs that are none; runs the command that it is given (or else the tiny
# grid of grid.py) on it, and takes down what it started. Everything lies in one new folder but for two Debian packages.
# Says in one line why, and ends well, where that cannot be done.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-$PWD/.venv/bin/python}
LIMIT=${LIMIT:-1200}  # seconds for the command
export PYTHONDONTWRITEBYTECODE=1  # root must leave nothing in the checkout

skip() { echo "test-cluster is skipped: $*"; exit 0; }

[ "$(uname -s)" = Linux ] || skip "SLURM needs Linux"
if [ "$(id -u)" != 0 ]; then
  sudo -n true 2>/dev/null || skip "SLURM's daemons need root, and sudo asks for a password"
  exec sudo -n --preserve-env=PYTHONPATH PYTHON="$PYTHON" LIMIT="$LIMIT" bash "$0" "$@"
fi
if pgrep -x slurmctld >/dev/null || pgrep -x slurmd >/dev/null; then skip "SLURM runs on this machine already"; fi
needed() { for name in slurmctld slurmd srun sbatch sacct munged; do command -v "$name" >/dev/null || return 1; done; }
if ! needed; then
  command -v apt-get >/dev/null || skip "slurm-wlm and munge are not installed, and there is no apt-get to do so"
  echo "installing slurm-wlm and munge"
  export DEBIAN_FRONTEND=noninteractive
  quietly() { timeout -k 10 300 "$@" </dev/null >/dev/null 2>&1; }
  quietly apt-get update || true
  quietly apt-get install -y --no-install-recommends slurm-wlm munge && needed || skip "apt-get cannot install slurm-wlm and munge"
fi

folder=$(mktemp -d /tmp/mirl-cluster.XXXXXX)
chmod 755 "$folder"
started=()
down() {
  code=$?
  trap - EXIT
  set +e
  [ $code = 0 ] || tail -n 20 "$folder"/*.log
  scancel --quiet --user=root 2>/dev/null
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null; done
  for _ in $(seq 50); do
    alive=0
    for pid in "${started[@]}"; do kill -0 "$pid" 2>/dev/null && alive=1; done
    [ $alive = 0 ] && break
    sleep 0.2
  done
  for pid in "${started[@]}"; do kill -9 "$pid" 2>/dev/null; done
  rm -rf "$folder"
  exit $code
}
trap down EXIT
trap 'exit 130' INT TERM HUP

mkdir "$folder"/state "$folder"/spool "$folder"/munge
chmod 700 "$folder/munge"
head -c 64 /dev/urandom > "$folder/munge.key"
chmod 600 "$folder/munge.key"
mknod "$folder/gpu0" c 1 3 && mknod "$folder/gpu1" c 1 3 || skip "device nodes cannot be made here"
node=$(hostname -s)
free_port() { "$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
cat > "$folder/slurm.conf" <<END
ClusterName=mirl
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
GresTypes=gpu
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=$node NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000 Gres=gpu:2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
echo "NodeName=$node Name=gpu File=$folder/gpu[0-1]" > "$folder/gres.conf"
export SLURM_CONF=$folder/slurm.conf
mkdir "$folder/bin"  # the plugin forgets all SLURM_* variables within a job, so the commands bring this one along
for name in srun sbatch squeue scancel sinfo sacct; do
  printf '#!/bin/sh\nSLURM_CONF=%s exec %s "$@"\n' "$SLURM_CONF" "$(command -v "$name")" > "$folder/bin/$name"
done
chmod 755 "$folder"/bin/*
PATH=$folder/bin:$PATH

start() { "$@" >> "$folder/start.log" 2>&1 & started+=($!); }
start munged --foreground --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
  --pid-file="$folder/munge/pid" --log-file="$folder/munge.log" --seed-file="$folder/munge/seed"
for _ in $(seq 50); do [ -S "$folder/munge.socket" ] && break; sleep 0.2; done
start slurmctld -D -f "$SLURM_CONF"
start slurmd -D -f "$SLURM_CONF"
for _ in $(seq 150); do [ "$(sinfo -h -o %t 2>/dev/null)" = idle ] && break; sleep 0.2; done
[ "$(sinfo -h -o %t)" = idle ] || { echo "error: the node did not come up"; sinfo || true; exit 1; }
echo "SLURM $(sinfo --version | cut -d' ' -f2) is up: node $node with $(sinfo -h -o %G)"

[ $# -gt 0 ] || set -- "$PYTHON" tests/cluster/grid.py "$folder/results"
timeout -k 20 "$LIMIT" "$@"
