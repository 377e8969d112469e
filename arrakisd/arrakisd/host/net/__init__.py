"""Networks of this host: what connects VMs, and what keeps them apart."""
