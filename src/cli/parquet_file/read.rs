//! Points of a `.parquet` file, row by row.
//!
//! Vectors are read column by column, all else as rows, in step. It happens on a thread of its own: readers of a row
//! group borrow from it, and a damaged file may bring the crate's row reader down, which must be an error here.

use super::{
    super::{
        import::{Ids, Names, Source, id_of},
        progress::Extent,
        row::{Content, Row},
        server::Failure,
    },
    ID, INDICES, PAYLOAD, VALUES,
    lists::{NextLists, floats, holds_numbers, indices},
    vector_of,
};
use parquet::{
    basic::LogicalType,
    file::reader::{FileReader, RowGroupReader, SerializedFileReader},
    record::{Field, Row as Fields},
    schema::types::{SchemaDescriptor, Type},
};
use serde_json::{Map, Value, value::to_raw_value};
use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

/// A file of points.
pub(in crate::cli) struct Table {
    name: String,
    count: u64,
    chunks: Receiver<Result<Vec<Row>, Failure>>,
    rows: VecDeque<Row>,
    given: u64,
}

/// Rows read at once.
const CHUNK: usize = 256;

impl Table {
    /// Opens a file; `column` says which holds the vectors, if its name does not.
    ///
    /// Errors: a file that is damaged, or does not say where its vectors are.
    pub(in crate::cli) fn open(path: &Path, column: Option<&str>, ids: Ids) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let opened = catch_unwind(|| open(path, column));
        let opened = opened.unwrap_or_else(|_| Err("is damaged".into()));
        let (reader, plan) = opened.map_err(|e| format!("{name}: {e}"))?;
        let count = u64::try_from(reader.metadata().file_metadata().num_rows())
            .map_err(|_| format!("{name}: is damaged: it has fewer than no rows"))?;
        let (out, chunks) = sync_channel(2);
        let called = name.clone();
        thread::spawn(move || {
            // Nothing of the reader is looked at any more when it has panicked.
            let read = catch_unwind(AssertUnwindSafe(|| {
                Reading { plan, ids, name: &called, row: 0 }.read(&reader, &out)
            }));
            let read = read.unwrap_or_else(|_| Err(format!("{called}: is damaged").into()));
            if let Err(failure) = read {
                let _nobody_waits = out.send(Err(failure));
            }
        });
        Ok(Table { name, count, chunks, rows: VecDeque::new(), given: 0 })
    }
}

impl Source for Table {
    fn extent(&self) -> Extent {
        Extent::Points(self.count)
    }

    fn passed(&self) -> u64 {
        self.given
    }

    fn names(&self) -> Names {
        Names::Rows(self.name.clone())
    }

    fn next(&mut self) -> Result<Option<Row>, Failure> {
        while self.rows.is_empty() {
            // The thread ends behind the last row, or behind an error.
            let Ok(chunk) = self.chunks.recv() else {
                return match self.given == self.count {
                    true => Ok(None),
                    false => {
                        Err(format!("{}: has {} rows, says {}", self.name, self.given, self.count).into())
                    }
                };
            };
            self.rows = chunk?.into();
        }
        self.given += 1;
        Ok(self.rows.pop_front())
    }
}

/// Which columns are what.
struct Plan {
    vectors: Vec<VectorColumn>,
    /// The columns that are no vectors, if there are any.
    others: Option<Type>,
    /// Whether the column `payload` is the whole payload.
    payload_is_json: bool,
    /// Whether a point may lack its vector: so it is in what `annal export` writes.
    may_lack: bool,
}

struct VectorColumn {
    name: String,
    leaves: Leaves,
}

#[derive(Clone, Copy)]
enum Leaves {
    Dense(usize),
    Sparse { indices: usize, values: usize },
}

fn open(path: &Path, column: Option<&str>) -> Result<(SerializedFileReader<File>, Plan), Failure> {
    let reader = SerializedFileReader::new(File::open(path)?)?;
    let plan = Plan::of(reader.metadata().file_metadata().schema_descr(), column)?;
    Ok((reader, plan))
}

impl Plan {
    fn of(schema: &SchemaDescriptor, column: Option<&str>) -> Result<Self, Failure> {
        let roots = schema.root_schema().get_fields();
        let leaves_of = |root: &str| -> Vec<usize> {
            (0..schema.num_columns()).filter(|leaf| schema.column(*leaf).path().parts()[0] == root).collect()
        };
        let leaves = |root: &str| -> Option<Leaves> {
            match leaves_of(root)[..] {
                [leaf] if holds_numbers(&schema.column(leaf)) => Some(Leaves::Dense(leaf)),
                [indices, values] => {
                    let called = |leaf: usize, name| {
                        schema.column(leaf).path().parts().get(1).is_some_and(|part| part == name)
                    };
                    (called(indices, INDICES) && called(values, VALUES))
                        .then_some(Leaves::Sparse { indices, values })
                }
                _ => None,
            }
        };
        let (vectors, may_lack) = match column {
            Some(name) => (vec![named(name, "", leaves(name))?], false),
            None => {
                let own = roots
                    .iter()
                    .filter_map(|root| vector_of(root.name()).map(|vector| (root.name(), vector)));
                let own: Result<Vec<_>, _> =
                    own.map(|(root, vector)| named(root, vector, leaves(root))).collect();
                match own? {
                    own if own.is_empty() => {
                        let lists =
                            roots.iter().map(|root| root.name()).filter(|root| leaves(root).is_some());
                        (vec![the_only(&lists.collect::<Vec<_>>(), leaves)?], false)
                    }
                    own => (own, true),
                }
            }
        };
        let taken =
            |root: &str| vectors.iter().any(|vector| leaves_of(root).contains(&vector.leaves.first()));
        let others: Vec<_> = roots.iter().filter(|root| !taken(root.name())).cloned().collect();
        let payload_is_json = others.iter().any(|root| {
            root.name() == PAYLOAD && root.get_basic_info().logical_type_ref() == Some(&LogicalType::Json)
        });
        let others = match others.is_empty() {
            true => None,
            false => Some(Type::group_type_builder(schema.root_schema().name()).with_fields(others).build()?),
        };
        Ok(Plan { vectors, others, payload_is_json, may_lack })
    }
}

fn named(column: &str, vector: &str, leaves: Option<Leaves>) -> Result<VectorColumn, Failure> {
    let leaves =
        leaves.ok_or_else(|| format!("column {column} is not there, or holds no lists of numbers"))?;
    Ok(VectorColumn { name: vector.to_owned(), leaves })
}

fn the_only(lists: &[&str], leaves: impl Fn(&str) -> Option<Leaves>) -> Result<VectorColumn, Failure> {
    match lists {
        [] => Err("no column holds lists of numbers".into()),
        [one] => named(one, "", leaves(one)),
        several => {
            Err(format!("columns {} hold lists of numbers: --column says which", several.join(", ")).into())
        }
    }
}

impl Leaves {
    fn first(self) -> usize {
        let (Leaves::Dense(leaf) | Leaves::Sparse { indices: leaf, .. }) = self;
        leaf
    }
}

/// Columns of a row group that are read in step.
enum Column {
    Dense(NextLists<f32>),
    Sparse(NextLists<u32>, NextLists<f32>),
}

/// One vector of a row.
enum Vector {
    Dense(Vec<f32>),
    Sparse(Vec<u32>, Vec<f32>),
}

struct Reading<'a> {
    plan: Plan,
    ids: Ids,
    name: &'a str,
    row: u64,
}

impl Reading<'_> {
    fn read(
        &mut self,
        file: &SerializedFileReader<File>,
        out: &SyncSender<Result<Vec<Row>, Failure>>,
    ) -> Result<(), Failure> {
        for group in 0..file.num_row_groups() {
            let group = file.get_row_group(group).map_err(|e| self.within(&e.to_string()))?;
            if !self.read_group(&*group, out)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether somebody still waits for rows.
    fn read_group(
        &mut self,
        group: &dyn RowGroupReader,
        out: &SyncSender<Result<Vec<Row>, Failure>>,
    ) -> Result<bool, Failure> {
        let count = usize::try_from(group.metadata().num_rows()).map_err(|_| self.within("is damaged"))?;
        let mut columns = self.columns(group).map_err(|e| self.within(&e.to_string()))?;
        let others = self.plan.others.clone().map(|schema| group.get_row_iter(Some(schema)));
        let mut others = others.transpose().map_err(|e| self.within(&e.to_string()))?;
        let mut left = count;
        while left > 0 {
            let chunk = left.min(CHUNK);
            left -= chunk;
            let mut vectors: Vec<Vec<(String, Vector)>> = (0..chunk).map(|_| Vec::new()).collect();
            for (of, column) in self.plan.vectors.iter().zip(&mut columns) {
                column.read(chunk, &of.name, &mut vectors).map_err(|e| self.within(&e.to_string()))?;
            }
            let mut rows = Vec::with_capacity(chunk);
            for vectors in vectors {
                let fields = others.as_mut().map(|rows| match rows.next() {
                    Some(fields) => fields.map_err(|e| self.within(&e.to_string())),
                    None => Err(self.within("has fewer rows than the file says")),
                });
                let fields = fields.transpose();
                match fields.and_then(|fields| self.point(vectors, fields).map_err(|why| self.within(&why))) {
                    Ok(row) => rows.push(row),
                    Err(failure) => {
                        // What stands before it is good.
                        let _nobody_waits = out.send(Ok(rows));
                        return Err(failure);
                    }
                }
                self.row += 1;
            }
            if out.send(Ok(rows)).is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn columns(&self, group: &dyn RowGroupReader) -> Result<Vec<Column>, Failure> {
        let schema = group.metadata().schema_descr();
        let open = |leaf: usize| group.get_column_reader(leaf);
        let column = |of: &VectorColumn| -> Result<Column, Failure> {
            Ok(match of.leaves {
                Leaves::Dense(leaf) => Column::Dense(floats(&schema.column(leaf), open(leaf)?)?),
                Leaves::Sparse { indices: i, values: v } => Column::Sparse(
                    indices(&schema.column(i), open(i)?)?,
                    floats(&schema.column(v), open(v)?)?,
                ),
            })
        };
        self.plan.vectors.iter().map(column).collect()
    }

    fn point(&self, vectors: Vec<(String, Vector)>, fields: Option<Fields>) -> Result<Row, String> {
        if vectors.is_empty() && !self.plan.may_lack {
            return Err("has no vector".to_owned());
        }
        if self.ids == Ids::Usual && fields.as_ref().is_some_and(has_null_id) {
            return Err(format!(
                "column {ID} is null; --id-field names another column, --row-ids counts rows"
            ));
        }
        let mut fields = fields.map(payload).unwrap_or_default();
        let said = match (fields.contains_key(ID), &self.ids) {
            (true, Ids::Usual) => Some(id_of(&fields[ID]).map_err(|why| {
                format!("column {ID}: {why}; --id-field names another column, --row-ids counts rows")
            })?),
            _ => None,
        };
        if said.is_some() {
            fields.remove(ID);
        }
        if self.plan.payload_is_json {
            fields = whole_payload(fields)?;
        }
        let written = |value: &Value| to_raw_value(value).expect("keys are strings");
        let payload = (!fields.is_empty()).then(|| written(&Value::Object(fields)));
        let id = self.ids.of(self.row, said, payload.as_deref())?;
        Ok(Row { place: self.row, id, vector: content(vectors)?, payload })
    }

    fn within(&self, why: &str) -> Failure {
        format!("{} row {}: {why}", self.name, self.row).into()
    }
}

impl Column {
    /// Puts the next vectors to those of their rows.
    fn read(&mut self, count: usize, name: &str, rows: &mut [Vec<(String, Vector)>]) -> Result<(), Failure> {
        let name = || name.to_owned();
        match self {
            Column::Dense(next) => {
                for (row, vector) in rows.iter_mut().zip(next(count)?) {
                    row.extend(vector.map(|numbers| (name(), Vector::Dense(numbers))));
                }
            }
            Column::Sparse(indices, values) => {
                let pairs = indices(count)?.into_iter().zip(values(count)?);
                for (row, (indices, values)) in rows.iter_mut().zip(pairs) {
                    match (indices, values) {
                        (Some(indices), Some(values)) if indices.len() == values.len() => {
                            row.push((name(), Vector::Sparse(indices, values)));
                        }
                        (None, None) => {}
                        _ => return Err(format!("column {}: as many indices as values", name()).into()),
                    }
                }
            }
        }
        Ok(())
    }
}

/// Vectors as they are sent.
fn content(mut vectors: Vec<(String, Vector)>) -> Result<Content, String> {
    for (name, vector) in &vectors {
        let (Vector::Dense(numbers) | Vector::Sparse(_, numbers)) = vector;
        if matches!(vector, Vector::Dense(numbers) if numbers.is_empty()) {
            return Err(format!("{}: has no numbers", super::column_of(name)));
        }
        if let Some(at) = numbers.iter().position(|n| !n.is_finite()) {
            let column = super::column_of(name);
            return Err(format!("{column}: number {at} is {}, every one must be finite", numbers[at]));
        }
    }
    if let [(name, Vector::Dense(numbers))] = &mut vectors[..]
        && name.is_empty()
    {
        return Ok(Content::Dense(std::mem::take(numbers)));
    }
    let named: BTreeMap<String, Value> = vectors
        .into_iter()
        .map(|(name, vector)| match vector {
            Vector::Dense(numbers) => (name, numbers.into()),
            Vector::Sparse(indices, values) => {
                (name, serde_json::json!({"indices": indices, "values": values}))
            }
        })
        .collect();
    Ok(Content::Written(to_raw_value(&named).expect("keys are strings")))
}

/// Whether there is a column for ids, and nothing in it: to count the row instead might be to take the id of another.
fn has_null_id(fields: &Fields) -> bool {
    fields.get_column_iter().any(|(name, field)| name == ID && matches!(field, Field::Null))
}

/// Columns as fields of a payload; what is null is left out.
fn payload(fields: Fields) -> Map<String, Value> {
    let field = |(name, field): (String, Field)| match json(&field) {
        Value::Null => None,
        value => Some((name, value)),
    };
    fields.into_columns().into_iter().filter_map(field).collect()
}

/// As JSON; instants as RFC 3339 has them.
fn json(field: &Field) -> Value {
    match (field, field.to_json_value()) {
        (Field::TimestampMillis(_) | Field::TimestampMicros(_), Value::String(text)) => {
            Value::String(text.replacen(' ', "T", 1).replace(" +00:00", "Z"))
        }
        (_, value) => value,
    }
}

/// The payload that one column holds as JSON; other columns are laid over it.
fn whole_payload(mut fields: Map<String, Value>) -> Result<Map<String, Value>, String> {
    let mut whole = match fields.remove(PAYLOAD) {
        None => Map::new(),
        Some(Value::String(text)) => {
            serde_json::from_str(&text).map_err(|e| format!("column {PAYLOAD}: wants a JSON object: {e}"))?
        }
        Some(_) => return Err(format!("column {PAYLOAD}: wants text")),
    };
    whole.extend(fields);
    Ok(whole)
}
