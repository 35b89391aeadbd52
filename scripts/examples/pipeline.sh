#!/bin/sh
# Any other pipeline: builds, measures and judges; the exit code says what became of it.
set -u
edgeopt run --preset "${EDGEOPT_PRESET:-pr}"
code=$?
case $code in
  0) echo "released files are in build/edgeopt" ;;
  1) echo "a gate failed: see build/edgeopt/summary.md" ;;
  2) echo "edgeopt.toml has a mistake" ;;
  3) echo "a variant could not be built or measured" ;;
  4) echo "the measurement does not tell; measure longer, or on a quieter machine" ;;
  5) echo "no baseline that can be compared; edgeopt baseline save" ;;
esac
[ $code -eq 0 ] && edgeopt verify build/edgeopt
exit $code
