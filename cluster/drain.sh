#!/usr/bin/env bash
# What a worker pod does before it stops (preStop hook): take no new tasks or actors, give what runs
# a few seconds, then leave the cluster by name, so that nobody waits for a health check to fail.
#
# Usage: drain.sh [SECONDS]. In all it takes about SECONDS + 10, which must fit the pod's
# terminationGracePeriodSeconds; preemptible nodes give 25 to 120 s.
set -u
seconds=${1:-10}
# Ray does not count restarts that a preempted node causes against an actor's restarts.
ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "the pod is stopping" \
  --deadline-remaining-seconds "$seconds" || echo "drain.sh: not drained, stopping all the same"
sleep "$seconds"
ray stop --grace-period 5
