//! Points in `.parquet` files: the only room that names the `parquet` crate.
//!
//! As it is written: `id` (text: a number or a UUID), `payload` (JSON, if there is one), and for each vector a list of
//! floats `vector`, or `vector.NAME` where vectors have names; a sparse one is a group of two lists, `indices` and
//! `values`. Why not through arrow: `docs/decisions/0014`.

mod lists;
mod read;
mod write;

pub(super) use read::Table;
pub(super) use write::TableWriter;

const ID: &str = "id";
const PAYLOAD: &str = "payload";
const VECTOR: &str = "vector";
const INDICES: &str = "indices";
const VALUES: &str = "values";

/// The column of a vector; the unnamed one has the name `""`.
fn column_of(name: &str) -> String {
    if name.is_empty() { VECTOR.to_owned() } else { format!("{VECTOR}.{name}") }
}

/// The vector of a column; none if it is another's.
fn vector_of(column: &str) -> Option<&str> {
    match column.strip_prefix(VECTOR)? {
        "" => Some(""),
        rest => rest.strip_prefix('.'),
    }
}

#[cfg(test)]
mod tests;
