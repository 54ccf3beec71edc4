"""Pictures as inline SVG whose colours and type are the page's own."""
