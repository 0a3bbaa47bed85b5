"""What a pod would need: memory, time and collectives, without the pod."""
