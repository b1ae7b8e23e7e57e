"""What makes training faster and changes no result: fast layers, CUDA graphs, several processes."""
