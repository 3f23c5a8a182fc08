"""Traces: their ids, how they are continued and handed on, spans, and sampling."""
