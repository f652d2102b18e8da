"""The files that ILSVRC's test server takes: classification, localisation, detection."""
