"""What the daemon does to this host: processes, memory, disks, hypervisors. Knows no VM's life."""
