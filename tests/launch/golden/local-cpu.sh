mkdir -p /shared/isoflop/logs
JAX_PLATFORMS=cpu taskset --cpu-list 0,1 lmscale run isoflop --scale gpu --data 'my text' --out /shared/isoflop --shard 0/2 >>/shared/isoflop/logs/local-0.log 2>&1
JAX_PLATFORMS=cpu taskset --cpu-list 2,3 lmscale run isoflop --scale gpu --data 'my text' --out /shared/isoflop --shard 1/2 >>/shared/isoflop/logs/local-1.log 2>&1
