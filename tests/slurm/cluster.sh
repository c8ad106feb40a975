#!/usr/bin/env bash
# A Slurm cluster of three nodes on this host, for tests and for trying `softshard submit`: no systemd, no root needed, nothing
# outside of its folder.
#
#   tests/slurm/cluster.sh start FOLDER [PORT...]   starts all; 4 ports, of the controller and of nodes n1 n2 n3
#   tests/slurm/cluster.sh controller FOLDER [-c]   starts the controller again; -c: it forgets every job
#   tests/slurm/cluster.sh node FOLDER n2           starts a node's daemon again
#   tests/slurm/cluster.sh stop FOLDER              ends all
#
# Then `export SLURM_CONF=FOLDER/slurm.conf`; sbatch, squeue and scontrol find the cluster by it.
# Process ids are in FOLDER/{munged,slurmctld,slurmd-n1,slurmd-n2,slurmd-n3}.pid, logs beside them.
set -euo pipefail
export PATH="$PATH:/usr/sbin"

[[ $# -ge 2 ]] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
action=$1 folder=$(realpath -m "$2")
shift 2
export SLURM_CONF="$folder/slurm.conf"

for tool in munged slurmctld slurmd sbatch scontrol; do
	command -v "$tool" >/dev/null || {
		echo "$tool is not here: apt-get install slurmctld slurmd slurm-client munge" >&2
		exit 127
	}
done

write_config() {
	local ports=("$@") user
	user=$(id -un)
	cat >"$folder/slurm.conf" <<-END
		ClusterName=softshard
		SlurmctldHost=localhost
		SlurmctldPort=${ports[0]}
		SlurmUser=$user
		SlurmdUser=$user
		AuthType=auth/munge
		CredType=cred/munge
		# A requeued job starts again only when its credential has expired: after 120 s by default.
		AuthInfo=socket=$folder/munge.socket,cred_expire=5
		StateSaveLocation=$folder/state
		SlurmdSpoolDir=$folder/spool-%n
		SlurmctldPidFile=$folder/slurmctld.pid
		SlurmdPidFile=$folder/slurmd-%n.pid
		SlurmctldLogFile=$folder/slurmctld.log
		SlurmdLogFile=$folder/slurmd-%n.log
		ProctrackType=proctrack/linuxproc
		TaskPlugin=task/none
		JobAcctGatherType=jobacct_gather/none
		AccountingStorageType=accounting_storage/none
		JobCompType=jobcomp/none
		SwitchType=switch/none
		MpiDefault=none
		SelectType=select/cons_tres
		SelectTypeParameters=CR_Core
		SlurmdParameters=config_overrides
		# A node whose daemon is gone is down after 5 s, and its jobs run elsewhere.
		SlurmdTimeout=5
		SlurmctldTimeout=5
		ReturnToService=2
		KillWait=2
		MinJobAge=3600
		SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,sched_interval=2
		BatchStartTimeout=5
		MessageTimeout=5
		NodeName=n1 NodeHostname=localhost Port=${ports[1]} CPUs=1
		NodeName=n2 NodeHostname=localhost Port=${ports[2]} CPUs=1
		NodeName=n3 NodeHostname=localhost Port=${ports[3]} CPUs=1
		PartitionName=all Nodes=n[1-3] Default=YES MaxTime=INFINITE State=UP
	END
}

node() {
	mkdir -p "$folder/spool-$1"
	slurmd -N "$1"
}

until_idle() {
	for _ in {1..200}; do
		[[ $(sinfo --noheader --Node --states=idle --format=%N 2>/dev/null | sort -u | wc -l) == 3 ]] && return
		sleep 0.1
	done
	echo "the nodes are not idle after 20 s; see $folder/*.log" >&2
	sinfo >&2
	return 1
}

# Ends the process of a pid file, and waits for its end.
end() {
	local process
	process=$(cat "$1" 2>/dev/null) || return 0
	kill "-$2" "$process" 2>/dev/null || return 0
	for _ in {1..100}; do
		kill -0 "$process" 2>/dev/null || return 0
		sleep 0.05
	done
	kill -KILL "$process" 2>/dev/null || true
}

case $action in
start)
	ports=("$@")
	((${#ports[@]} == 4)) || ports=(46817 46818 46819 46820)
	mkdir -p "$folder/state"
	# munged wants folders that only its user can write to.
	chmod 755 "$folder"
	(umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
	munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
		--log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
	write_config "${ports[@]}"
	slurmctld
	for name in n1 n2 n3; do node "$name"; done
	until_idle
	;;
controller) slurmctld "$@" ;;
node) node "$1" ;;
stop)
	scancel --user="$(id -un)" 2>/dev/null || true
	for name in n1 n2 n3; do end "$folder/slurmd-$name.pid" TERM; done
	end "$folder/slurmctld.pid" TERM
	end "$folder/munged.pid" TERM
	;;
*) exit 2 ;;
esac
