#!/bin/bash
# Workers of a study on Slurm, one a GPU:
#
#   export HPSEARCH_STORAGE=postgresql+psycopg://me@database/hpsearch    # the password: ~/.pgpass
#   export HPSEARCH_DIRECTORY=/shared/hpsearch
#   sbatch --array=1-16 examples/slurm.sh cifar10
#
# What stands after the script goes to `hpsearch worker`. A worker ends when the budget is spent.

#SBATCH --job-name=hpsearch
#SBATCH --array=1-4
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --gpus=1
#SBATCH --mem=8G
#SBATCH --time=04:00:00
# A minute before the time is up: the trial is handed back. To the step, not with B: to this shell
# or to srun, which kills on SIGTERM.
#SBATCH --signal=TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append

export OMP_NUM_THREADS="$SLURM_CPUS_PER_TASK"
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" hpsearch worker "$@"
code=$?

# Stopped by the end of its time or by preemption (143), or the storage did not answer for too long
# (75), or its GPU failed after a while (70), with work left: another turn in the queue. After scancel
# this is not reached. Not by SLURM_JOB_ID, which for one of the tasks means all of them. One whose
# GPU fails at once (71) may have a broken node.
if ((code == 143 || code == 75 || code == 70)); then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$code"
