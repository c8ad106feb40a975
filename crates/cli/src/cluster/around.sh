
# Slurm signals this shell only (--signal=B:…): the worker is told, and stops at its next boundary with exit code 75.
"$softshard" ARGUMENTS &
worker=$!
was_told= told=1
tell() { was_told=1 told=1; kill -TERM "$worker" 2>/dev/null; }
trap tell TERM
while ((told)); do # a signal ends `wait`, not the worker
	told=0
	wait "$worker"
	code=$?
done
# Told before it could listen.
[[ $was_told ]] && ((code == 143)) && code=75

# 75: there is more to do. Not where the job was cancelled or preempted, which Slurm deals with: it is not RUNNING then.
# Where users may not requeue, or the controller is away for long, `softshard resume` goes on.
if ((code == 75)) && [[ $requeues ]]; then
	# One task of an array has the array's id, which stands for all of them.
	job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
	job=${job:-$SLURM_JOB_ID}
	restarts=${SLURM_RESTART_COUNT:-0}
	# Told to stop each time before it has done anything, it would go on so for ever.
	if ((restarts >= 20 || (restarts >= 3 && SECONDS < 30))); then
		echo "not put in the queue again after $restarts restarts and ${SECONDS} s: \`softshard resume\` goes on" >&2
		exit "$code"
	fi
	for _ in {1..10}; do
		state=$(squeue --noheader --jobs="$job" --format=%T) || { sleep 5; continue; }
		[[ $state == RUNNING ]] || break
		scontrol requeue "$job" && sleep 60 # the requeue ends this shell
		sleep 5
	done
fi
exit "$code"
