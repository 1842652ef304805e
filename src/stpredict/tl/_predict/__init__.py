"""The prediction pipeline, in the order in which data flow: request, destination, job, provenance."""
