//! Writes points into a `.parquet` file, a row group after the other.

use super::{
    super::{row::OneVector, server::Failure, settings::Settings},
    ID, INDICES, PAYLOAD, VALUES, column_of,
    lists::Waiting,
};
use parquet::{
    basic::{Compression, LogicalType, Repetition, Type as Physical},
    data_type::{ByteArray, ByteArrayType, FloatType, Int32Type},
    file::{
        properties::WriterProperties,
        writer::{SerializedFileWriter, SerializedRowGroupWriter},
    },
    schema::types::{ColumnPath, Type, TypePtr},
};
use std::{collections::BTreeMap, io::Write, sync::Arc};

/// A file being written.
pub(in crate::cli) struct TableWriter<W: Write + Send> {
    file: SerializedFileWriter<W>,
    ids: Vec<ByteArray>,
    payloads: Vec<ByteArray>,
    payloads_there: Vec<i16>,
    vectors: Vec<(String, Column)>,
    /// About how much waits to be written.
    bytes: usize,
}

/// Numbers that wait.
enum Column {
    Dense(Waiting<f32>),
    Sparse(Waiting<i32>, Waiting<f32>),
}

/// A row group is written when so much waits.
const GROUP_BYTES: usize = 32 << 20;
const GROUP_ROWS: usize = 16_384;

impl<W: Write + Send> TableWriter<W> {
    /// Columns for points that are like this.
    pub(in crate::cli) fn new(out: W, settings: &Settings) -> Result<Self, Failure> {
        let dense = settings.vectors.keys().map(|name| (name.clone(), Column::Dense(Waiting::new())));
        let sparse = settings.sparse_vectors.iter();
        let sparse = sparse.map(|name| (name.clone(), Column::Sparse(Waiting::new(), Waiting::new())));
        let vectors: Vec<_> = dense.chain(sparse).collect();
        let mut properties = WriterProperties::builder().set_compression(Compression::SNAPPY);
        for (name, column) in &vectors {
            for leaf in column.leaves(name) {
                properties = properties.set_column_dictionary_enabled(ColumnPath::new(leaf), false);
            }
        }
        let file = SerializedFileWriter::new(out, Arc::new(schema(&vectors)?), Arc::new(properties.build()))?;
        Ok(TableWriter {
            file,
            ids: Vec::new(),
            payloads: Vec::new(),
            payloads_there: Vec::new(),
            vectors,
            bytes: 0,
        })
    }

    /// A point: its id and payload as text, its vectors by name.
    ///
    /// Errors: a vector that the settings do not name.
    pub(in crate::cli) fn write(
        &mut self,
        id: String,
        payload: Option<&str>,
        mut vectors: BTreeMap<String, OneVector>,
    ) -> Result<(), Failure> {
        for (name, column) in &mut self.vectors {
            let vector = vectors.remove(name);
            self.bytes += vector.as_ref().map_or(1, OneVector::len) * 8;
            match (column, &vector) {
                (Column::Dense(waiting), None) => waiting.push(None),
                (Column::Dense(waiting), Some(OneVector::Dense(numbers))) => waiting.push(Some(numbers)),
                (Column::Sparse(indices, values), None) => {
                    indices.push(None);
                    values.push(None);
                }
                (Column::Sparse(indices, values), Some(OneVector::Sparse(sparse))) => {
                    let as_stored: Vec<i32> = sparse.indices.iter().map(|i| i.cast_signed()).collect();
                    indices.push(Some(&as_stored));
                    values.push(Some(&sparse.values));
                }
                _ => return Err(format!("point {id}: vector \"{name}\" is of another kind").into()),
            }
        }
        if let Some(name) = vectors.keys().next() {
            return Err(format!("point {id}: vector \"{name}\" was not there when the export began").into());
        }
        self.bytes += id.len() + payload.map_or(0, str::len);
        self.ids.push(id.into_bytes().into());
        self.payloads_there.push(i16::from(payload.is_some()));
        self.payloads.extend(payload.map(|text| ByteArray::from(text.as_bytes().to_vec())));
        if self.bytes >= GROUP_BYTES || self.ids.len() >= GROUP_ROWS {
            self.write_group()?;
        }
        Ok(())
    }

    /// Writes what waits, and the foot.
    pub(in crate::cli) fn finish(mut self) -> Result<W, Failure> {
        self.write_group()?;
        Ok(self.file.into_inner()?)
    }

    fn write_group(&mut self) -> Result<(), Failure> {
        if self.ids.is_empty() {
            return Ok(());
        }
        let mut group = self.file.next_row_group()?;
        column::<_, ByteArrayType>(&mut group, |column| column.write_batch(&self.ids, None, None).map(drop))?;
        column::<_, ByteArrayType>(&mut group, |column| {
            column.write_batch(&self.payloads, Some(&self.payloads_there), None).map(drop)
        })?;
        for (_, vector) in &mut self.vectors {
            match vector {
                Column::Dense(waiting) => column::<_, FloatType>(&mut group, |column| waiting.write(column))?,
                Column::Sparse(indices, values) => {
                    column::<_, Int32Type>(&mut group, |column| indices.write(column))?;
                    column::<_, FloatType>(&mut group, |column| values.write(column))?;
                }
            }
        }
        group.close()?;
        self.ids.clear();
        self.payloads.clear();
        self.payloads_there.clear();
        self.bytes = 0;
        Ok(())
    }
}

/// Writes the next column of a row group.
fn column<W: Write + Send, D: parquet::data_type::DataType>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    write: impl FnOnce(&mut parquet::column::writer::ColumnWriterImpl<'_, D>) -> parquet::errors::Result<()>,
) -> Result<(), Failure> {
    let mut column = group.next_column()?.expect("the schema has as many columns");
    write(column.typed::<D>())?;
    Ok(column.close()?)
}

fn schema(vectors: &[(String, Column)]) -> Result<Type, Failure> {
    let text = |name: &str, kind: LogicalType, repetition| {
        Type::primitive_type_builder(name, Physical::BYTE_ARRAY)
            .with_logical_type(Some(kind))
            .with_repetition(repetition)
            .build()
    };
    let mut fields = vec![
        Arc::new(text(ID, LogicalType::String, Repetition::REQUIRED)?),
        Arc::new(text(PAYLOAD, LogicalType::Json, Repetition::OPTIONAL)?),
    ];
    for (name, vector) in vectors {
        let name = column_of(name);
        fields.push(match vector {
            Column::Dense(_) => list(&name, Physical::FLOAT, Repetition::OPTIONAL)?,
            Column::Sparse(..) => {
                let indices = list(INDICES, Physical::INT32, Repetition::REQUIRED)?;
                let values = list(VALUES, Physical::FLOAT, Repetition::REQUIRED)?;
                let group = Type::group_type_builder(&name).with_fields(vec![indices, values]);
                Arc::new(group.with_repetition(Repetition::OPTIONAL).build()?)
            }
        });
    }
    Ok(Type::group_type_builder("points").with_fields(fields).build()?)
}

fn list(name: &str, number: Physical, repetition: Repetition) -> Result<TypePtr, Failure> {
    let element = Type::primitive_type_builder("element", number);
    let mut element = element.with_repetition(Repetition::REQUIRED);
    if number == Physical::INT32 {
        element = element.with_logical_type(Some(LogicalType::integer(32, false)));
    }
    let list = Type::group_type_builder("list").with_repetition(Repetition::REPEATED);
    let list = list.with_fields(vec![Arc::new(element.build()?)]).build()?;
    let field = Type::group_type_builder(name).with_repetition(repetition);
    Ok(Arc::new(field.with_logical_type(Some(LogicalType::List)).with_fields(vec![Arc::new(list)]).build()?))
}

impl Column {
    /// The paths of its numbers.
    fn leaves(&self, name: &str) -> Vec<Vec<String>> {
        let path = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect();
        let name = column_of(name);
        match self {
            Column::Dense(_) => vec![path(&[&name, "list", "element"])],
            Column::Sparse(..) => [INDICES, VALUES].map(|of| path(&[&name, of, "list", "element"])).into(),
        }
    }
}
