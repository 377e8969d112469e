"""Hypervisor drivers. A driver knows its hypervisor and nothing else."""
