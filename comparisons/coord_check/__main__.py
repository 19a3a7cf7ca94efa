from comparisons.coord_check.study import main

main()
