//! A column of lists of numbers: read and written with its levels, which say where a list begins and which lack.

use super::super::server::Failure;
use parquet::{
    basic::{LogicalType, Type as Physical},
    column::{
        reader::{ColumnReader, ColumnReaderImpl},
        writer::ColumnWriterImpl,
    },
    data_type::{DataType, FixedLenByteArrayType},
    errors::Result as Parquet,
    schema::types::ColumnDescriptor,
};

/// Gives the next so many lists; none for one that is null, or whose group is.
///
/// Errors: the column holds fewer, or a number in a list is null.
pub(super) type NextLists<T> = Box<dyn FnMut(usize) -> Result<Vec<Option<Vec<T>>>, Failure>>;

/// Whether a leaf is a list of what can be a vector's numbers.
pub(super) fn holds_numbers(leaf: &ColumnDescriptor) -> bool {
    leaf.max_rep_level() == 1
        && match leaf.physical_type() {
            Physical::FLOAT | Physical::DOUBLE | Physical::INT32 => true,
            Physical::FIXED_LEN_BYTE_ARRAY => leaf.logical_type_ref() == Some(&LogicalType::Float16),
            _ => false,
        }
}

/// Lists of floats, whatever they are stored as.
pub(super) fn floats(leaf: &ColumnDescriptor, column: ColumnReader) -> Result<NextLists<f32>, Failure> {
    Ok(match column {
        ColumnReader::FloatColumnReader(column) => lists(leaf, column, |n| *n),
        ColumnReader::DoubleColumnReader(column) => lists(leaf, column, |n| *n as f32),
        ColumnReader::Int32ColumnReader(column) => lists(leaf, column, |n| *n as f32),
        ColumnReader::FixedLenByteArrayColumnReader(column) => {
            lists::<FixedLenByteArrayType, _>(leaf, column, |bytes| match bytes.data() {
                [low, high] => half::f16::from_le_bytes([*low, *high]).to_f32(),
                _ => f32::NAN,
            })
        }
        _ => return Err(format!("holds {}, wants floats", leaf.physical_type()).into()),
    })
}

/// Lists of the indices of sparse vectors.
pub(super) fn indices(leaf: &ColumnDescriptor, column: ColumnReader) -> Result<NextLists<u32>, Failure> {
    match column {
        ColumnReader::Int32ColumnReader(column) => Ok(lists(leaf, column, |n| n.cast_unsigned())),
        _ => Err(format!("holds {}, wants indices", leaf.physical_type()).into()),
    }
}

fn lists<T: DataType, N: 'static>(
    leaf: &ColumnDescriptor,
    mut column: ColumnReaderImpl<T>,
    number: impl Fn(&T::T) -> N + 'static,
) -> NextLists<N> {
    let (there, name) = (leaf.max_def_level(), leaf.path().parts()[0].clone());
    // One level below a number that is there: one that is null, where that may be; below that: a list without any.
    let null = leaf.self_type().is_optional().then_some(there - 1);
    let empty = null.unwrap_or(there) - 1;
    let (mut def, mut rep, mut values) = (Vec::new(), Vec::new(), Vec::new());
    Box::new(move |count| {
        def.clear();
        rep.clear();
        values.clear();
        let (mut records, mut more) = (0, true);
        while more && records < count {
            let (read, ..) =
                column.read_records(count - records, Some(&mut def), Some(&mut rep), &mut values)?;
            records += read;
            more = read > 0;
        }
        let mut lists: Vec<Option<Vec<N>>> = Vec::with_capacity(count);
        let mut numbers = values.iter();
        for (def, rep) in def.iter().zip(&rep) {
            if *rep == 0 {
                lists.push(None);
            }
            let list = lists.last_mut().ok_or_else(|| format!("column {name} begins within a list"))?;
            if *def == there {
                let value = numbers.next().ok_or_else(|| format!("column {name} lacks numbers"))?;
                list.get_or_insert_default().push(number(value));
            } else if Some(*def) == null {
                return Err(format!("column {name}: a number is null").into());
            } else if *def == empty {
                *list = Some(Vec::new());
            }
        }
        if lists.len() != count {
            return Err(format!("column {name} has fewer rows than the file says").into());
        }
        Ok(lists)
    })
}

/// Lists that wait to be written.
pub(super) struct Waiting<T> {
    def: Vec<i16>,
    rep: Vec<i16>,
    values: Vec<T>,
}

impl<T: Copy> Waiting<T> {
    pub(super) fn new() -> Self {
        Waiting { def: Vec::new(), rep: Vec::new(), values: Vec::new() }
    }

    /// A list, or the lack of it: of the list itself, or of the group it is in.
    pub(super) fn push(&mut self, list: Option<&[T]>) {
        match list {
            None | Some([]) => {
                self.def.push(i16::from(list.is_some()));
                self.rep.push(0);
            }
            Some(numbers) => {
                self.def.extend(numbers.iter().map(|_| 2));
                self.rep.extend((0..numbers.len()).map(|at| i16::from(at > 0)));
                self.values.extend_from_slice(numbers);
            }
        }
    }

    /// Writes what waits.
    pub(super) fn write<D: DataType<T = T>>(&mut self, column: &mut ColumnWriterImpl<'_, D>) -> Parquet<()> {
        column.write_batch(&self.values, Some(&self.def), Some(&self.rep))?;
        self.def.clear();
        self.rep.clear();
        self.values.clear();
        Ok(())
    }
}
