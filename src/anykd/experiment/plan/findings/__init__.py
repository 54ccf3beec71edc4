"""One small function for each thing that may be amiss; each looks and changes nothing."""
