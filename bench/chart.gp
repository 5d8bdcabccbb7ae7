# How many times as fast as the naive upsert: a profile a line, then the best
# hand-written SQL, then idem_merge().
set terminal svg noenhanced size 1000,560 font "sans-serif,13" background "#ffffff"
set title "Times as fast as INSERT ... SELECT ... ON CONFLICT DO UPDATE"
set style data histogram
set style histogram clustered gap 1
set style fill solid border -1
set boxwidth 0.9
set yrange [0:*]
set grid ytics
set xtics rotate by -35 scale 0
set key outside top center horizontal
plot data using 2:xtic(1) title "best hand-written SQL" linecolor rgb "#b0b0b0", \
     data using 3 title "idem_merge()" linecolor rgb "#336791", \
     1 notitle with lines linecolor rgb "#000000"
