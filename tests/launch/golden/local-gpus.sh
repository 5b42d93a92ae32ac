mkdir -p /shared/isoflop/logs
CUDA_VISIBLE_DEVICES=0 lmscale run isoflop --scale gpu --out /shared/isoflop --shard 0/4 --seeds 0 1 >>/shared/isoflop/logs/local-0.log 2>&1
CUDA_VISIBLE_DEVICES=1 lmscale run isoflop --scale gpu --out /shared/isoflop --shard 1/4 --seeds 0 1 >>/shared/isoflop/logs/local-1.log 2>&1
CUDA_VISIBLE_DEVICES=2 lmscale run isoflop --scale gpu --out /shared/isoflop --shard 2/4 --seeds 0 1 >>/shared/isoflop/logs/local-2.log 2>&1
CUDA_VISIBLE_DEVICES=3 lmscale run isoflop --scale gpu --out /shared/isoflop --shard 3/4 --seeds 0 1 >>/shared/isoflop/logs/local-3.log 2>&1
