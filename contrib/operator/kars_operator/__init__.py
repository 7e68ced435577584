"""An operator that turns custom resources into routed sandboxes."""
