
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
if ((code == 75)); then
	for _ in {1..10}; do
		state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) || { sleep 5; continue; }
		[[ $state == RUNNING ]] || break
		scontrol requeue "$SLURM_JOB_ID" && sleep 60 # the requeue ends this shell
		sleep 5
	done
fi
exit "$code"
