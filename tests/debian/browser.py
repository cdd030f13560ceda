"""A page opened in Chromium, which keeps what the page said and asked for."""

from __future__ import annotations

from pathlib import Path

DRAWN = "c => c.width > 300 && c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v)"


# Charts above may still be drawn, which moves the page: a pointer is of use only once the chart stays where it is.
SETTLED = """chart => new Promise(done => {
    let last = null, same = 0;
    const look = () => {
        chart.scrollIntoView({ block: 'center', behavior: 'instant' });
        const top = chart.getBoundingClientRect().top;
        same = top === last ? same + 1 : 0;
        last = top;
        if (same >= 3) done(); else setTimeout(look, 50);
    };
    look();
})"""


class Opened:
    """A page that keeps what it said and asked for."""

    def __init__(self, browser, path: Path, wait: bool = True, **context) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda m: self.said.append(m.text))
        self.page.on("pageerror", lambda e: self.said.append(str(e)))
        self.page.on("dialog", lambda d: (self.said.append(d.message), d.dismiss()))
        self.page.on("request", lambda r: self.asked.append(r.url))
        self.page.goto(path.as_uri())
        if wait:
            self.page.wait_for_selector("article[data-ready=true]")

    def __enter__(self):
        return self

    def __exit__(self, *exc) -> None:
        self.context.close()

    def tip(self) -> str:
        """What the tooltip says, empty if it is hidden."""
        tip = self.page.locator("#tip")
        return tip.inner_text() if tip.is_visible() else ""

    def canvas(self, name: str):
        found = self.page.locator(f"article:not([hidden]) canvas[data-chart={name}]")
        found.scroll_into_view_if_needed()
        found.focus()
        self.page.wait_for_function(DRAWN, arg=found.element_handle())
        found.evaluate(SETTLED)
        return found


PAINT = """() => new Promise(done => new PerformanceObserver(list => {
    for (const entry of list.getEntries()) if (entry.name === 'first-contentful-paint') done(entry.startTime);
}).observe({ type: 'paint', buffered: true }))"""
