"""Where cluster objects come from: manifests on disk, the API server."""
