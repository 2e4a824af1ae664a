//! Columns, as wide as what stands in them.

use super::text::printable;

/// To which side a column's cells go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows of as many cells as there are columns.
#[derive(Debug)]
pub struct Table {
    sides: Vec<Side>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with a first row of titles.
    pub fn new(columns: &[(&str, Side)]) -> Self {
        Self {
            sides: columns.iter().map(|(_, side)| *side).collect(),
            rows: vec![columns.iter().map(|(title, _)| title.to_string()).collect()],
        }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [&str; N]) {
        self.rows
            .push(cells.iter().map(|cell| printable(cell)).collect());
    }

    /// How many characters the widest row has, without the last column.
    pub fn width_before_last(&self) -> usize {
        let columns = self.sides.len().saturating_sub(1);
        (0..columns).map(|column| self.width(column) + GAP).sum()
    }

    /// The rows as lines, without spaces at their ends.
    pub fn lines(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let pad = " ".repeat(self.width(column).saturating_sub(cell.chars().count()));
                line += &match self.sides.get(column) {
                    Some(Side::Right) => pad + cell,
                    _ => cell.clone() + &pad,
                };
                line += &" ".repeat(GAP);
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }

    fn width(&self, column: usize) -> usize {
        self.rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    }
}

/// Spaces between columns.
const GAP: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_their_titles() {
        let mut table = Table::new(&[("DEVICE", Side::Left), ("VALUE", Side::Right)]);
        table.row(["disk0", "7"]);
        table.row(["a-long-name", "123456"]);
        assert_eq!(
            table.lines(),
            "DEVICE        VALUE\ndisk0             7\na-long-name  123456\n"
        );
    }
}
