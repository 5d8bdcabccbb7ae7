# Makes Markdown tables of psql's (border 2), which are padded already.
/^\+[-+]+\+$/ {
    rules++
    if (rules == 2)
    {
        gsub(/\+/, "|")
        print
    }
    if (rules == 3)
        rules = 0
    next
}
{ print }
