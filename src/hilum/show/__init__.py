"""What a person sees: pictures, the page, and the output folder."""
