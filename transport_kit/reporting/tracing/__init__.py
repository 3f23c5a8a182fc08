"""Tracing: trace ids, propagation headers, spans, transactions and sampling."""
