//! Annal: a distributed vector database whose truth is a log.
