"""What each ATen operator means, as tables: dimension rules, cost, quantization role."""
