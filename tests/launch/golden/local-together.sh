mkdir -p /shared/isoflop/logs
CUDA_VISIBLE_DEVICES=0,1 lmscale run isoflop --scale gpu --out /shared/isoflop --shard 0/1 --distributed 127.0.0.1:PORT,2,0 >>/shared/isoflop/logs/local-0.log 2>&1
CUDA_VISIBLE_DEVICES=2,3 lmscale run isoflop --scale gpu --out /shared/isoflop --shard 0/1 --distributed 127.0.0.1:PORT,2,1 >>/shared/isoflop/logs/local-1.log 2>&1
