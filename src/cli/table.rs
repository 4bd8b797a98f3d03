//! Rows printed in columns that are as wide as they must be.

/// A head, then rows; numbers stand on the right.
pub(super) struct Table<const N: usize> {
    head: [&'static str; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(super) fn new(head: [&'static str; N]) -> Self {
        Table { head, rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    /// The table as text, every line ended.
    pub(super) fn text(&self) -> String {
        let chars = |column: usize| self.rows.iter().map(move |row| row[column].chars().count());
        let width = |column: usize| chars(column).chain([self.head[column].len()]).max().unwrap_or(0);
        let widths: [usize; N] = std::array::from_fn(width);
        let is_number = |cell: &str| cell == "-" || cell.parse::<i64>().is_ok();
        let right: [bool; N] = std::array::from_fn(|column| {
            !self.rows.is_empty() && self.rows.iter().all(|row| is_number(&row[column]))
        });
        let line = |cells: [&str; N]| {
            let cell = |column: usize| match right[column] {
                true => format!("{:>width$}", cells[column], width = widths[column]),
                false => format!("{:<width$}", cells[column], width = widths[column]),
            };
            let cells: Vec<String> = (0..N).map(cell).collect();
            cells.join("  ").trim_end().to_owned() + "\n"
        };
        let rows = self.rows.iter().map(|row| line(std::array::from_fn(|column| row[column].as_str())));
        [line(self.head)].into_iter().chain(rows).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_fit_what_is_in_them() {
        let mut table = Table::new(["NAME", "LAG", "STATE"]);
        table.row(["a long name".into(), "7".into(), "ok".into()]);
        table.row(["b".into(), "12345".into(), "é".into()]);
        assert_eq!(
            table.text(),
            "NAME           LAG  STATE\n\
             a long name      7  ok\n\
             b            12345  é\n"
        );
    }
}
