#!/usr/bin/env bash
# A study on a real SLURM of one node, which this sets up on Debian or Ubuntu, as root:
#
#   examples/slurm/single_node.sh OUT                          # --scale smoke --table supervised
#   examples/slurm/single_node.sh OUT --scale smoke --table 3  # any options of `study run`
#
# Half-way it requeues one job and cancels another, and shows that their cells went on from their
# checkpoints. For a machine or container of your own that you may throw away: it writes
# /etc/slurm/slurm.conf. On a cluster see README.md.
set -euo pipefail

out=${1:?Expected a folder for the study: examples/slurm/single_node.sh OUT [OPTIONS]}
shift
[ $# -gt 0 ] || set -- --scale smoke --table supervised
goodtransfer=${GOODTRANSFER:-goodtransfer}
[ "$(id -u)" = 0 ] || { echo "Expected to be root, to start SLURM's daemons."; exit 2; }

# --- SLURM: munged, slurmctld and slurmd, as plain processes
if ! command -v slurmctld slurmd munged > /dev/null; then
  printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d  # install, but start nothing
  chmod +x /usr/sbin/policy-rc.d
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurm-wlm munge > /dev/null
  rm /usr/sbin/policy-rc.d
fi
cores=$(nproc --all)  # plain nproc obeys OMP_NUM_THREADS
memory=$(awk '/^MemTotal/ {print int($2 / 1024 * 0.95)}' /proc/meminfo)
host=$(hostname -s)
mkdir -p /etc/slurm /var/spool/slurmctld /var/spool/slurmd /var/log/slurm /run/munge
# Where SLURM looks by itself: SLURM_CONF does not reach what runs within a job.
cat > /etc/slurm/slurm.conf << CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
# A requeued job waits for as long.
AuthInfo=cred_expire=15
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MinJobAge=3600
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
daemons=()
trap 'kill "${daemons[@]}" 2> /dev/null || true' EXIT
chown munge: /run/munge && chmod 755 /run/munge
said=/var/log/slurm/said.log
runuser -u munge -- munged --force --foreground >> $said 2>&1 & daemons+=($!)
sleep 1
slurmctld -D -c >> $said 2>&1 & daemons+=($!)
slurmd -D >> $said 2>&1 & daemons+=($!)
for _ in $(seq 30); do [ "$(sinfo -h -o %T 2> /dev/null)" = idle ] && break; sleep 1; done
sinfo

# --- Snakemake's own options: no accounting here, and quick answers
profile=$(mktemp -d)
cat > "$profile/config.yaml" << YAML
slurm-status-command: squeue
slurm-init-seconds-before-status-checks: 2
seconds-between-status-checks: 2
YAML
export SNAKEMAKE_PROFILE=$profile

# --- The study, and two accidents
$goodtransfer study run "$@" --out "$out" --executor slurm --jobs "$cores" --retries 2 \
  --default-resources slurm_account=none slurm_partition=main &
study=$!

# The next cell that has a checkpoint to go on from: "JOB KEY".
half_way() {
  local checkpoint key job
  while kill -0 $study 2> /dev/null; do
    for checkpoint in "$out"/work/*/last.ckpt; do
      key=$(basename "$(dirname "$checkpoint")")
      [ -f "$checkpoint" ] && [ "$key" != "${1:-}" ] || continue
      job=$(squeue -h -t running -o '%i %k' | awk -v key="$key" 'index($2, key) {print $1; exit}')
      [ -n "$job" ] && { echo "$job $key"; return; }
    done
    sleep 0.2
  done
}
read -r job requeued <<< "$(half_way)"
scontrol requeue "$job" && echo "Requeued job $job, cell $requeued."
read -r job cancelled <<< "$(half_way "$requeued")"
scancel "$job" && echo "Cancelled job $job, cell $cancelled."
code=0
wait $study || code=$?

# --- What became of them
for key in $requeued $cancelled; do
  echo "--- cell $key"
  tr '\r' '\n' < "$out/results/$key/log.txt" | grep -a "going on at step" || code=1
  awk -F'[:,]' '/"loss"/ {n++; if ($2 + 0 <= last) bad = 1; last = $2 + 0}
    END {print n " losses in its curve, to step " last (bad ? ", NOT in order" : ", each once")}' \
    "$out/results/$key/curves.jsonl"
done
echo "--- jobs"
scontrol show job -o | sed -E 's/.*JobId=([0-9]+).*JobState=([A-Z]+).* Restarts=([0-9]+).*RunTime=([0-9:-]+).*/job \1  \2  restarts \3  \4/'
echo "--- study run ended with $code; $(ls "$out"/results/*/metrics.json | wc -l) cells are finished"
exit $code
