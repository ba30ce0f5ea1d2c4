//! The demo as a picture that moves: an SVG in which each line appears when it appeared on the screen.
//!
//! It never needs a script: where animations are not shown, all the lines are.

use std::fmt::Write as _;

use super::screen::{Shown, Tone};

const LINE_HEIGHT: usize = 19;
const MARGIN: usize = 18;
const WIDTH: usize = 860;
/// The bar with the window's three buttons.
const BAR_HEIGHT: usize = 34;

/// The SVG.
pub(super) fn svg(command: &str, shown: &[Shown]) -> String {
    let height = BAR_HEIGHT + 2 * MARGIN + (shown.len() + 2) * LINE_HEIGHT;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         role=\"img\" aria-label=\"A terminal in which {command} runs\">\n\
         <style>\n\
         text {{ font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace; fill: #d7dae0; white-space: pre }}\n\
         .good {{ fill: #8fd18a }} .bad {{ fill: #ff7b72; font-weight: bold }} .strong {{ font-weight: bold; fill: #ffffff }} .faint {{ fill: #868c98 }}\n\
         .line {{ animation: appear 0.2s backwards }}\n\
         @keyframes appear {{ from {{ opacity: 0 }} to {{ opacity: 1 }} }}\n\
         @media (prefers-reduced-motion: reduce) {{ .line {{ animation: none }} }}\n\
         </style>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#1b1e24\"/>\n"
    );
    for (index, colour) in ["#ff5f57", "#febc2e", "#28c840"].into_iter().enumerate() {
        let x = MARGIN + 4 + index * 20;
        let _ = writeln!(
            svg,
            "<circle cx=\"{x}\" cy=\"18\" r=\"6\" fill=\"{colour}\"/>"
        );
    }
    let mut y = BAR_HEIGHT + MARGIN;
    let _ = writeln!(
        svg,
        "<text x=\"{MARGIN}\" y=\"{y}\">$ {}</text>",
        escaped(command)
    );
    y += LINE_HEIGHT;
    for line in shown {
        y += LINE_HEIGHT;
        if line.text.is_empty() {
            continue;
        }
        let class = match line.tone {
            Tone::Plain => "",
            Tone::Good => " good",
            Tone::Bad => " bad",
            Tone::Strong => " strong",
            Tone::Faint => " faint",
        };
        let _ = writeln!(
            svg,
            "<text class=\"line{class}\" style=\"animation-delay:{:.2}s\" x=\"{MARGIN}\" y=\"{y}\" xml:space=\"preserve\">{}</text>",
            line.at.as_secs_f64(),
            escaped(&line.text)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_line_appears_at_its_time_and_cannot_break_the_picture() {
        let shown = [Shown {
            at: Duration::from_millis(1500),
            tone: Tone::Bad,
            text: "<killed> & gone".to_owned(),
        }];
        let svg = svg("cargo xtask demo", &shown);
        assert!(svg.contains("class=\"line bad\" style=\"animation-delay:1.50s\""));
        assert!(svg.contains("&lt;killed&gt; &amp; gone"));
    }
}
